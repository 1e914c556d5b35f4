"""How sure a score is: intervals, differences, averages, seeds and power, all of answers summed by image."""
