"""Methods side by side: grading, statistics, judges, the page."""
