"""The segmenter of the paper's ADE20K table, on the backbone that all tasks share."""
