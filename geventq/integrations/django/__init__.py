"""Django: `around`, `add_on_commit`, and the command ``manage.py geventq_worker``.

The package is a Django app: ``"geventq.integrations.django"`` in ``INSTALLED_APPS`` brings the
command.
"""

from geventq.integrations.django.database import add_on_commit, around

__all__ = ["add_on_commit", "around"]
