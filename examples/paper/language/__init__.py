"""Language modelling: the paper's tensorized Transformer (its Appendix G), and decoders as people train them today."""
