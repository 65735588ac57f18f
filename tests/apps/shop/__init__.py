"""A Django application whose jobs run in ``manage.py geventq_worker``."""
