"""What a finished sweep shows: leaderboard, tables, comparisons, plots and the HTML report."""
