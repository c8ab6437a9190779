"""The paper's Figure 9: how the output covariance and the loss's Hessian decay while a network trains."""
