//! Every primitive of the helper suite, on shares: value, error, declared cost, and uniformity of what evaluators receive.

mod primitives {
    mod arithmetic;
    mod causal;
    mod choice;
    mod lookup;
    mod nonlinear;
    mod routing;
    mod rows;
    mod steps;
    mod twin;
    mod weights;
}
