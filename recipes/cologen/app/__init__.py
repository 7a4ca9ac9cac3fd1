"""The page in the browser: `python -m recipes.cologen.app --checkpoint runs/tiny`."""
