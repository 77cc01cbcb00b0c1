//! Which documents share a row, by their lengths alone.

/// Which of the fragments of these lengths share a row: each goes into the first row that has room for it and fewer than
/// `most` fragments. One longer than `capacity` gets a row of its own, which no other shares.
#[must_use]
pub fn first_fit(lengths: &[usize], capacity: usize, most: usize) -> Vec<Vec<usize>> {
    fit(0..lengths.len(), lengths, capacity, most)
}

/// As [`first_fit`], the longest first; of equally long ones the earlier first.
#[must_use]
pub fn first_fit_decreasing(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(lengths[*i]));
    fit(order.into_iter(), lengths, capacity, usize::MAX)
}

/// Which of the fragments of these lengths share a row: each goes into the current row, or else begins the next.
#[must_use]
pub fn sequential(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for (i, length) in lengths.iter().enumerate() {
        match rows.last_mut() {
            Some(row) if *length <= room => row.push(i),
            _ => {
                rows.push(vec![i]);
                room = capacity;
            }
        }
        room = room.saturating_sub(*length);
    }
    rows
}

fn fit(order: impl Iterator<Item = usize>, lengths: &[usize], capacity: usize, most: usize) -> Vec<Vec<usize>> {
    let mut rows: Vec<Vec<usize>> = Vec::new();
    let mut rooms = Rooms::new(lengths.len());
    for i in order {
        let length = lengths[i];
        let row = rooms.first(length).unwrap_or_else(|| {
            rows.push(Vec::new());
            rooms.set(rows.len() - 1, Some(capacity));
            rows.len() - 1
        });
        rows[row].push(i);
        let room = rooms.get(row).unwrap_or(0).saturating_sub(length);
        rooms.set(row, (rows[row].len() < most).then_some(room));
    }
    rows
}

/// The rooms of rows, as a tree that knows the most in each half: the first row with room is found in logarithmic time.
struct Rooms {
    /// The root is at 1, the children of `i` at `2 i` and `2 i + 1`. A number is a room and one more; 0 is a row that is closed
    /// or not there.
    most: Vec<usize>,
    leaves: usize,
}

impl Rooms {
    fn new(rows: usize) -> Self {
        let leaves = rows.next_power_of_two();
        Self { most: vec![0; 2 * leaves], leaves }
    }

    fn get(&self, row: usize) -> Option<usize> {
        self.most[self.leaves + row].checked_sub(1)
    }

    fn set(&mut self, row: usize, room: Option<usize>) {
        let mut at = self.leaves + row;
        self.most[at] = room.map_or(0, |room| room.saturating_add(1));
        while at > 1 {
            at /= 2;
            self.most[at] = self.most[2 * at].max(self.most[2 * at + 1]);
        }
    }

    /// The first row with this much room.
    fn first(&self, length: usize) -> Option<usize> {
        if self.most[1] <= length {
            return None;
        }
        let mut at = 1;
        while at < self.leaves {
            at = if self.most[2 * at] > length { 2 * at } else { 2 * at + 1 };
        }
        Some(at - self.leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The definition, row by row.
    fn plainly(order: &[usize], lengths: &[usize], capacity: usize, most: usize) -> Vec<Vec<usize>> {
        let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
        for i in order {
            match rows.iter_mut().find(|(room, row)| *room >= lengths[*i] && row.len() < most) {
                Some((room, row)) => {
                    *room -= lengths[*i];
                    row.push(*i);
                }
                None => rows.push((capacity.saturating_sub(lengths[*i]), vec![*i])),
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    proptest! {
        #[test]
        fn rows_take_what_fits_and_every_fragment_has_one_row(lengths in prop::collection::vec(1usize..30, 0..80)) {
            for rows in [first_fit(&lengths, 30, 5), first_fit_decreasing(&lengths, 30), sequential(&lengths, 30)] {
                let mut all: Vec<usize> = rows.iter().flatten().copied().collect();
                all.sort_unstable();
                prop_assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
                prop_assert!(rows.iter().all(|row| row.iter().map(|i| lengths[*i]).sum::<usize>() <= 30));
            }
        }

        #[test]
        fn the_tree_finds_the_row_that_looking_at_every_row_finds(
            lengths in prop::collection::vec(0usize..40, 0..120),
            most in 1usize..6,
        ) {
            let order: Vec<usize> = (0..lengths.len()).collect();
            prop_assert_eq!(first_fit(&lengths, 30, most), plainly(&order, &lengths, 30, most));
        }
    }

    #[test]
    fn decreasing_order_fills_rows_that_the_given_order_leaves_half_empty() {
        let lengths = [4, 4, 6, 6];
        assert_eq!(first_fit(&lengths, 10, 9), [vec![0, 1], vec![2], vec![3]]);
        assert_eq!(first_fit_decreasing(&lengths, 10), [vec![2, 0], vec![3, 1]]);
        assert_eq!(sequential(&[4, 4, 6, 2, 20], 10), [vec![0, 1], vec![2, 3], vec![4]]);
    }
}
