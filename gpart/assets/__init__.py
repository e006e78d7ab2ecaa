"""What is packaged on the Python package index, and how it is fetched. It is no part of the method."""
