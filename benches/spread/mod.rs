//! What is said of many figures: the one in the middle, and how far they lie apart.

/// Of ten figures, one is smaller than `p10`, and one is greater than `p90`.
pub(crate) struct Spread {
    pub(crate) p10: f64,
    pub(crate) median: f64,
    pub(crate) p90: f64,
}

impl Spread {
    /// The spread of figures in any order, of which there is at least one.
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<_> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let [p10, median, p90] = [100, 500, 900].map(|per_mille| quantile(&sorted, per_mille));
        Self { p10, median, p90 }
    }
}

/// The smallest figure that so many of a thousand do not exceed.
pub(crate) fn quantile<T: Copy>(sorted: &[T], per_mille: usize) -> T {
    let rank = (sorted.len() * per_mille).div_ceil(1000);
    sorted[rank.saturating_sub(1)]
}
