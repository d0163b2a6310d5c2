"""What the views that have no file of their own yet share with those that have one."""

from minillm_repl.views.base import Likely

__all__ = ["Likely"]
