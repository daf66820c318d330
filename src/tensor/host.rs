//! Host memory of tensors.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::device::cpu::{Buffer, Element};

/// What names something made of a buffer's values: the op's own name for it, and the numbers that it depends on.
pub(super) type Key = (&'static str, Vec<usize>);

/// Host memory of one tensor or slab.
#[derive(Debug)]
pub struct HostBuffer<T: Element> {
    values: Buffer<T>,
    /// What ops have made of the values and would make again, for as long as these do not change.
    derived: Mutex<BTreeMap<Key, Arc<HostBuffer<T>>>>,
}

impl<T: Element> HostBuffer<T> {
    pub fn new(values: Buffer<T>) -> HostBuffer<T> {
        HostBuffer { values, derived: Mutex::default() }
    }

    /// What `make` makes of the values, or has made of them before. Two threads that ask at the same time may both make it: to wait
    /// for the other would take as long, and could wait for itself where `make` works in parallel.
    pub(super) fn derived(&self, key: Key, make: impl FnOnce() -> Buffer<T>) -> Arc<HostBuffer<T>> {
        let derived = || self.derived.lock().expect("no thread panics while it holds the map");
        let found = derived().get(&key).cloned();
        found.unwrap_or_else(|| {
            let made = Arc::new(HostBuffer::new(make()));
            derived().entry(key).or_insert(made).clone()
        })
    }
}

impl<T: Element> std::ops::Deref for HostBuffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values
    }
}

impl<T: Element> std::ops::DerefMut for HostBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.derived.get_mut().expect("no thread panics while it holds the map").clear();
        &mut self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_is_kept_until_the_values_change() {
        let mut buffer = HostBuffer::new(vec![1.0_f32, 2.0].into());
        let doubled = |buffer: &HostBuffer<f32>, key: Key| {
            let mut makes = 0;
            let made = buffer.derived(key, || {
                makes += 1;
                Buffer::from(buffer.iter().map(|v| 2.0 * v).collect::<Vec<f32>>())
            });
            (made.to_vec(), makes)
        };
        let key = |number| ("doubled", vec![number]);
        assert_eq!(doubled(&buffer, key(0)), (vec![2.0, 4.0], 1));
        assert_eq!(doubled(&buffer, key(0)), (vec![2.0, 4.0], 0));
        assert_eq!(doubled(&buffer, key(1)).1, 1);
        buffer[0] = 5.0;
        assert_eq!(doubled(&buffer, key(0)), (vec![10.0, 4.0], 1));
    }
}
