"""What tests ask of a small data set of their own, whatever its layout."""

import pytest

from smt.config.project import Project
from smt.datasets import manifest
from smt.errors import DataError
from smt.runs.paths import Layout


class TinyData:
    """A data set `tiny` below a folder, in a project that has it; who inherits makes all three."""

    project: Project
    layout: Layout

    def manifest(self):
        return manifest.write(self.project, self.layout, "tiny")

    def refusal(self):
        """Return what is said of the data set, and make sure that nothing was written."""
        with pytest.raises(DataError) as error:
            self.manifest()
        assert not self.layout.manifest("tiny").exists()
        assert "\n" not in str(error.value) and "datasets.tiny" in str(error.value)
        return str(error.value)
