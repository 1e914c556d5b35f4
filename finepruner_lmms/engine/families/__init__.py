"""The model families that can be pruned, one file each: what transformers' models of one type call the same thing.

Nothing here runs a model's layers: a family says where the visual tokens of a prompt stand, which of them may be
dropped, and what the vision tower says of them. The rest of the engine is the same for all. docs/add_a_model.md tells
what a new one needs. Importing this package loads neither torch nor transformers, so that studies are planned without.
"""
