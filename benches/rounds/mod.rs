//! Variants that take turns: what slows the machine down for a while slows all of them down, and not one.

use std::array;

/// What each variant gave in each of so many rounds. Each round has an order of its own, the same in each run. The round
/// before the first warms up and is thrown away.
pub(crate) fn rounds<T, const N: usize>(number: usize, variants: &mut [&mut dyn FnMut() -> T; N]) -> [Vec<T>; N] {
    let mut random = fastrand::Rng::with_seed(0);
    let mut order: [usize; N] = array::from_fn(|variant| variant);
    let mut seen = array::from_fn(|_| Vec::with_capacity(number));
    for round in 0..=number {
        random.shuffle(&mut order);
        for variant in order {
            let figure = variants[variant]();
            if round > 0 {
                seen[variant].push(figure);
            }
        }
    }
    seen
}
