"""The demanding world: crowded scenes on real photographs, and questions that hang on one small region."""
