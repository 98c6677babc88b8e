"""Pictures of what a trained SMT computes, as the paper shows them."""
