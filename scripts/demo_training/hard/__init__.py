"""Training of a model of the demanding world, without a box, a mask or a label of an object in any loss."""
