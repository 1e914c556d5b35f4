"""Results for other programs: tables, and the formats in which others exchange evaluations. One file a format."""
