"""Base class of small data sets that a test writes, in any layout."""

import pytest

from smt.config.project import Project
from smt.datasets import manifest_writer
from smt.errors import DataError
from smt.runs.paths import Layout


class TinyData:
    """A data set `tiny` and a project with it; a subclass makes files, project and layout."""

    project: Project
    layout: Layout

    def manifest(self):
        return manifest_writer.write(self.project, self.layout, "tiny")

    def refusal(self):
        """Return the error of a manifest of the data set, and assert that nothing was written."""
        with pytest.raises(DataError) as error:
            self.manifest()
        assert not self.layout.manifest("tiny").exists()
        assert "\n" not in str(error.value) and "datasets.tiny" in str(error.value)
        return str(error.value)
