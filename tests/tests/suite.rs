//! Whole models on the helper suite, on its fixed-point twin and in floating point: values, cost, and what may be seen.

mod suite {
    mod accuracy;
    mod adapters;
    mod batches;
    mod cost;
    mod decoders;
    mod deviations;
    mod effort;
    mod headroom;
    mod models;
    mod requests;
    mod secrecy;
    mod sharing;
}
