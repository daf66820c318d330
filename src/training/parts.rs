//! Batches in parts, for networks whose graph of a whole batch would not fit into memory: the gradients are those of the
//! whole batch (up to the order of sums), because a loss is a mean over images that meet only in the groups of the
//! minibatch standard deviation, and no group is torn apart. On the CPU small networks see a batch in two parts at the same
//! time: their ops are too short to be cut among threads without loss.

use crate::device::Device;
use crate::error::Result;
use crate::models::stylegan2::{StyleGan2Config, Styles};
use crate::ops::layout::{concat, gather_rows};
use crate::tensor::Tensor;

/// Bytes that the maps of one graph may take by the estimate below.
const GRAPH_BYTES: usize = 4 << 30;

/// Maps that D's graph keeps at each resolution: outputs of three convolutions, two activations, a blur, a sum.
const MAPS: usize = 7;

/// Bytes of an image's maps up to which halves of a batch go side by side on the CPU. Two threads then take 0.54 times as long as
/// one, where ops that are cut among them take 0.66 (demo's widths, 1.4 MB); at full width (20 MB) both take the same.
const SIDE_BY_SIDE_BYTES: usize = 4 << 20;

/// Some of a batch's images.
#[derive(Clone)]
pub(super) struct Part {
    indices: Vec<usize>,
    whole: bool,
    /// Images of the parts before it.
    pub first: usize,
    /// Weight of its mean in the batch's.
    pub share: f64,
    /// The rank that takes it through the networks.
    pub owner: usize,
}

impl Part {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    pub fn of(&self, t: &Tensor) -> Result<Tensor> {
        if self.whole { Ok(t.clone()) } else { gather_rows(t, &self.indices) }
    }

    /// Rows of a batch of which `make` makes the first `n` and `given` is the rest.
    pub fn of_made_and_given(&self, n: usize, make: &dyn Fn(&Part) -> Result<Tensor>, given: &Tensor) -> Result<Tensor> {
        let (made, rest): (Vec<usize>, Vec<usize>) = self.indices.iter().copied().partition(|i| *i < n);
        let place = |i: &usize| made.iter().chain(&rest).position(|j| j == i).expect("every index is in one of both");
        let order: Vec<usize> = self.indices.iter().map(place).collect();
        let given = gather_rows(given, &rest.iter().map(|i| i - n).collect::<Vec<_>>());
        let rows = match (made.is_empty(), rest.is_empty()) {
            (true, _) => return given,
            (_, true) => return make(self),
            _ => [make(&Part { indices: made, ..*self })?, given?],
        };
        gather_rows(&concat(&[&rows[0], &rows[1]], 0)?, &order)
    }

    /// One map for all images stays one.
    pub fn of_noise(&self, maps: &[Tensor]) -> Result<Vec<Tensor>> {
        maps.iter().map(|m| if m.dim(0) == 1 { Ok(m.clone()) } else { self.of(m) }).collect()
    }

    pub fn of_styles(&self, styles: &Styles) -> Result<Styles> {
        if self.whole { Ok(styles.clone()) } else { styles.rows(&self.indices) }
    }
}

/// How a batch goes through the networks.
pub(super) struct Cut {
    pub parts: Vec<Part>,
    /// All parts at the same time, or one after the other.
    pub side_by_side: bool,
}

impl Cut {
    /// Parts of about `at_once` images, one after the other. `members`, `ranks`: as for `parts`.
    pub fn of(n: usize, members: usize, at_once: usize, ranks: usize) -> Cut {
        Cut { parts: parts(n, members, at_once, ranks), side_by_side: false }
    }

    /// By the networks' size. It does not depend on the number of threads, so neither do the results.
    pub fn by_size(config: &StyleGan2Config, device: &Device, n: usize, members: usize, ranks: usize) -> Cut {
        let (image, of_rank) = (image_bytes(config), n / ranks);
        // As many whole groups as memory allows, real and fake images together.
        let at_once = (GRAPH_BYTES / (2 * image)).max(1);
        if goes_in_halves(config, device) && at_once >= of_rank {
            let half = (of_rank / members).div_ceil(2) * members;
            return Cut { side_by_side: half < of_rank, ..Cut::of(n, members, half, ranks) };
        }
        Cut::of(n, members, at_once, ranks)
    }

    /// The parts of one rank.
    pub fn owned_by(&self, rank: usize) -> Cut {
        Cut { parts: self.parts.iter().filter(|p| p.owner == rank).cloned().collect(), ..*self }
    }

    /// Whether the graphs of all parts exist at the same time.
    pub fn is_held_at_once(&self) -> bool {
        self.side_by_side || self.parts.len() == 1
    }

    /// The batch's rows `[n, …]` of those of all of its parts.
    pub fn in_order(&self, of_parts: &[&Tensor]) -> Result<Tensor> {
        if let [whole] = of_parts {
            return Ok((*whole).clone());
        }
        let mut places: Vec<(usize, usize)> = self.parts.iter().flat_map(|p| &p.indices).copied().zip(0..).collect();
        places.sort();
        gather_rows(&concat(of_parts, 0)?, &places.into_iter().map(|(_, at)| at).collect::<Vec<_>>())
    }
}

/// Whether halves of a batch go through networks of this size at the same time, each on one thread as long as the other is
/// busy.
pub fn goes_in_halves(config: &StyleGan2Config, device: &Device) -> bool {
    matches!(device, Device::Cpu) && image_bytes(config) <= SIDE_BY_SIDE_BYTES
}

/// Bytes of the maps that D's graph keeps of one image.
fn image_bytes(config: &StyleGan2Config) -> usize {
    let map = |r: usize| 4 * r * r * config.channels_at(r);
    (config.blocks().chain([4])).map(map).sum::<usize>() * MAPS
}

/// Cuts a batch of `n` into parts of about `at_once` images, as many for each of `ranks`. Images of one group stay
/// together: within a batch image b belongs to group b mod (n / members), and a part's images are ordered so that the
/// same rule finds the same groups.
fn parts(n: usize, members: usize, at_once: usize, ranks: usize) -> Vec<Part> {
    assert!(n.is_multiple_of(members * ranks), "{n} images in groups of {members} for {ranks} ranks: none may be left over");
    let groups = n / members;
    let of_rank = groups / ranks;
    let per_part = (at_once / members).clamp(1, of_rank.max(1));
    (0..ranks)
        .flat_map(|owner| (owner * of_rank..(owner + 1) * of_rank).step_by(per_part).map(move |first| (owner, first..(first + per_part).min((owner + 1) * of_rank))))
        .map(|(owner, chosen)| {
            let indices: Vec<usize> = (0..members).flat_map(|m| chosen.clone().map(move |g| m * groups + g)).collect();
            Part { whole: indices.len() == n, first: chosen.start * members, share: indices.len() as f64 / n as f64, owner, indices }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::stylegan2::Discriminator;

    #[test]
    fn groups_stay_together_and_in_order() {
        let parts = |n, at_once| parts(n, Discriminator::group(n), at_once, 1);
        let of = |n, at_once| parts(n, at_once).into_iter().map(|p| p.indices).collect::<Vec<_>>();
        assert_eq!(of(16, 4), [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]);
        assert_eq!(of(12, 8), [vec![0, 1, 3, 4, 6, 7, 9, 10], vec![2, 5, 8, 11]]);
        assert_eq!(of(8, 100), [[0, 1, 2, 3, 4, 5, 6, 7]]);
        assert_eq!(of(4, 1), [[0, 1, 2, 3]]);
        assert_eq!(of(3, 1), [[0, 1, 2]]);
        let shares: Vec<f64> = parts(12, 8).iter().map(|p| p.share).collect();
        assert!((shares[0] - 2.0 / 3.0).abs() < 1e-15 && (shares[1] - 1.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn ranks_take_the_same_number_of_groups() {
        let of = |at_once| parts(16, 4, at_once, 2).into_iter().map(|p| (p.owner, p.indices)).collect::<Vec<_>>();
        let (first, second) = (vec![0, 1, 4, 5, 8, 9, 12, 13], vec![2, 3, 6, 7, 10, 11, 14, 15]);
        assert_eq!(of(100), [(0, first), (1, second)]);
        assert_eq!(of(4).iter().map(|p| p.0).collect::<Vec<_>>(), [0, 0, 1, 1]);
        assert_eq!(parts(4, 1, 100, 4).iter().map(|p| p.indices.len()).collect::<Vec<_>>(), [1; 4]);
    }

    /// Each part's rows are those of the whole batch, whichever of them are given.
    #[test]
    fn made_and_given_rows_keep_their_places() {
        let row = |i: usize| i as f32;
        let given = Tensor::from_vec(&[3, 1], vec![row(5), row(6), row(7)]);
        for at_once in [4, 8] {
            for part in parts(8, 4, at_once, 1) {
                let make = |part: &Part| Ok(Tensor::from_vec(&[part.indices.len(), 1], part.indices.iter().map(|i| row(*i)).collect::<Vec<f32>>()));
                let rows = part.of_made_and_given(5, &make, &given).unwrap();
                assert_eq!(rows.to_vec::<f32>(), part.indices.iter().map(|i| row(*i)).collect::<Vec<f32>>());
            }
        }
    }

    /// On the CPU halves of whole groups, unless there is only one group; rows find back to their places.
    #[test]
    fn small_networks_take_halves() {
        let config = StyleGan2Config::with_channels(32, 64, 4, "4:64,8:64,16:48,32:32").unwrap();
        let of = |n, ranks| Cut::by_size(&config, &Device::Cpu, n, Discriminator::group(n), ranks);
        let sizes = |cut: &Cut| (cut.parts.iter().map(|p| (p.first, p.len())).collect::<Vec<_>>(), cut.side_by_side);
        assert_eq!(sizes(&of(16, 1)), (vec![(0, 8), (8, 8)], true));
        assert_eq!(sizes(&of(12, 1)), (vec![(0, 8), (8, 4)], true));
        assert_eq!(sizes(&of(4, 1)), (vec![(0, 4)], false));
        assert_eq!(sizes(&of(16, 2).owned_by(1)), (vec![(8, 4), (12, 4)], true));
        let (cut, batch) = (of(12, 1), Tensor::from_vec(&[12, 1], (0..12).map(|i| i as f32).collect::<Vec<_>>()));
        let parts: Vec<Tensor> = cut.parts.iter().map(|p| p.of(&batch).unwrap()).collect();
        assert_ne!(concat(&parts.iter().collect::<Vec<_>>(), 0).unwrap().to_vec::<f32>(), batch.to_vec::<f32>());
        assert_eq!(cut.in_order(&parts.iter().collect::<Vec<_>>()).unwrap().to_vec::<f32>(), batch.to_vec::<f32>());
    }

    #[test]
    fn large_networks_take_few_images() {
        let of = |config: StyleGan2Config, n| Cut::by_size(&config, &Device::Cpu, n, 4, 1);
        let wide = of(StyleGan2Config::mnist(), 64);
        assert_eq!((wide.parts.len(), wide.side_by_side), (1, false));
        let large = of(StyleGan2Config::config_f_256(), 16);
        assert_eq!((large.parts.len(), large.side_by_side), (4, false));
    }
}
