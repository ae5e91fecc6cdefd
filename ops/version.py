"""What `k2.__version__` says: the version of k2 whose names and meanings these are, marked as ours.

Programs compare it with k2's versions. Which Lattica this is, `pip show lattica` says.
"""

__version__ = "1.24.4+lattica"
