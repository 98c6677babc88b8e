"""What tests ask of a small data set of their own, whatever its layout."""

import pytest

from smt.datasets import manifest
from smt.errors import DataError


class TinyData:
    """A data set `tiny` below a folder; who inherits has a `project` with it and a `layout`."""

    def manifest(self):
        return manifest.write(self.project, self.layout, "tiny")

    def refusal(self):
        """Return what is said of the data set, and make sure that nothing was written."""
        with pytest.raises(DataError) as error:
            self.manifest()
        assert not self.layout.manifest("tiny").exists()
        assert "\n" not in str(error.value) and "datasets.tiny" in str(error.value)
        return str(error.value)
