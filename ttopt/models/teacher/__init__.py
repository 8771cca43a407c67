"""The frozen vision-language teacher: writes yes/no questions, grades videos, gives the frames gradients."""

from ttopt.data.queries import Queries
from ttopt.models.teacher.packing import PackedOutput
from ttopt.models.teacher.prompts import Prompts
from ttopt.models.teacher.teacher import Teacher
from ttopt.models.teacher.vision import Vision

__all__ = ["PackedOutput", "Prompts", "Queries", "Teacher", "Vision"]
