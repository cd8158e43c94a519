//! Matrices across a warp. Every fragment is laid out lane by lane with the formulas of the ISA's section on matrix
//! multiplication.

mod fragments;
mod mma;
mod moves;
mod shapes;
mod sparse;
mod wmma;

pub fn all() {
    moves::ldmatrix();
    moves::movmatrix();
    mma::mma_fragments_lane_by_lane();
    mma::satfinite_clamps_and_plain_wraps();
    mma::mma_of_quad_pairs();
    sparse::sparse_mma();
    wmma::wmma();
}
