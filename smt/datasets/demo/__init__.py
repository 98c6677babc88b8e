"""The demo's data sets, drawn from images that packages ship."""
