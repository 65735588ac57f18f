"""The Django app: its name, and the label that its settings and tables would have."""

from __future__ import annotations

from geventq.integrations.extras import needs

with needs("django", "django"):
    from django.apps import AppConfig

__all__ = ["GeventqConfig"]


class GeventqConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """``"geventq.integrations.django"`` in ``INSTALLED_APPS``.  It has no models."""

    name = "geventq.integrations.django"
    label = "geventq"
    verbose_name = "geventq"
