"""Operations: contract, plain reference, and in time the kernels that serve them."""
