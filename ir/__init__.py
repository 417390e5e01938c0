"""The tensor IR: types, nodes, op records, text form, verifier and reference interpreter."""
