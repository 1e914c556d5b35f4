"""The work of a study on other machines: submitting jobs, following them, and what each of them does."""
