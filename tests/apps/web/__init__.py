"""A web application as one writes it: Flask under gunicorn, with its jobs in the web processes."""
