"""What the application stores."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """Something that was bought."""

    number = models.CharField(max_length=50)

    class Meta:
        app_label = "shop"
        db_table = "shop_order"
