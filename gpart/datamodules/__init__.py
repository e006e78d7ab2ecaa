"""DataModules for the paper's tasks and the quick start."""

from gpart.datamodules.glue import GLUEDataModule
from gpart.datamodules.images import ImageDataModule
from gpart.datamodules.math import MathDataModule
from gpart.datamodules.movie_reviews import MovieReviewDataModule

__all__ = ["GLUEDataModule", "ImageDataModule", "MathDataModule", "MovieReviewDataModule"]
