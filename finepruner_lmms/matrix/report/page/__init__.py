"""The report as one HTML file: what it says, as data, and the page that shows it."""
