"""Settings of the application; the tests say where its servers are."""

from __future__ import annotations

import os
import sys

if os.environ.get("APP_DRIVER") == "psycopg2":  # else Django takes psycopg 3, which is there too
    sys.modules["psycopg"] = None  # type: ignore[assignment]

SECRET_KEY = "of a test"
USE_TZ = True
TIME_ZONE = None  # the process keeps its own
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["tests.apps.shop", "geventq.integrations.django"]
_DATABASE = {
    "ENGINE": "django.db.backends.postgresql",
    "HOST": os.environ.get("APP_POSTGRESQL", ""),
    "USER": "gq",
    "NAME": "postgres",
    "OPTIONS": {"application_name": os.environ.get("APP_NAME", "shop")},
}
if "APP_MARIADB" in os.environ:
    import pymysql

    pymysql.install_as_MySQLdb()
    _DATABASE = {
        "ENGINE": "django.db.backends.mysql",
        "HOST": os.environ["APP_MARIADB"],
        "USER": "root",
        "NAME": "mysql",
    }
DATABASES = {"default": _DATABASE, "replica": _DATABASE}
