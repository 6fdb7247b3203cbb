"""The rules, routes and policy routing around a transparent proxy."""

from .plan import Exempt, Plan

__all__ = ["Exempt", "Plan"]
