"""The demo page: a picture, a question, and what each method keeps of it, in a browser (`finepruner app`)."""
