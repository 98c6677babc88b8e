"""The demo's data sets, made of images that packages ship."""
