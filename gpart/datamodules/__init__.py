"""DataModules for the paper's tasks, the quick start, and people's own data."""

from gpart.datamodules.language.glue import GLUEDataModule
from gpart.datamodules.language.movie_reviews import MovieReviewDataModule
from gpart.datamodules.language.text_datamodule import TextDataModule
from gpart.datamodules.mathematics.math_datamodule import MathDataModule
from gpart.datamodules.mathematics.question_datamodule import QuestionDataModule
from gpart.datamodules.vision.image_datamodule import ImageDataModule

__all__ = [
    "GLUEDataModule",
    "ImageDataModule",
    "MathDataModule",
    "MovieReviewDataModule",
    "QuestionDataModule",
    "TextDataModule",
]
