"""How much each task counts in a step, by its losses or its gradients."""

from .base import Balancer
from .methods import METHODS, make_balancer, register_balancing

__all__ = ["Balancer", "METHODS", "make_balancer", "register_balancing"]
