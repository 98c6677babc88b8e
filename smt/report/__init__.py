"""Tables and figures from what was measured."""
