//! Processes that work together meet at an address: each is connected with the first one by TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};

/// First bytes of a connection: this protocol, then the rank.
const GREETING: [u8; 4] = *b"rcnt";
/// How long ranks wait for each other at the start.
const PATIENCE: Duration = Duration::from_secs(120);
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

fn failed(what: &str) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |e| Error::config("ranks", format!("{what}: {e}"))
}

/// One process's connections: of rank 0 to all others in the order of their ranks, of another to rank 0.
#[derive(Debug)]
pub struct Meeting {
    rank: usize,
    peers: Vec<TcpStream>,
}

impl Meeting {
    /// Waits until all `world` ranks are there. `address` is rank 0's, as HOST:PORT.
    pub fn new(rank: usize, world: usize, address: &str) -> Result<Meeting> {
        let peers = if rank == 0 { gather(world, address)? } else { vec![visit(rank, address)?] };
        for peer in &peers {
            peer.set_nodelay(true).map_err(failed("setting up a connection"))?;
        }
        Ok(Meeting { rank, peers })
    }

    /// Rank 0's bytes, on all ranks. All give as many.
    pub fn tell(&mut self, bytes: &mut [u8]) -> Result<()> {
        for peer in &mut self.peers {
            match self.rank {
                0 => peer.write_all(bytes),
                _ => peer.read_exact(bytes),
            }
            .map_err(failed("another rank is gone"))?;
        }
        Ok(())
    }

    /// Sums over all ranks, in their order: the same bits on each.
    pub fn sum(&mut self, values: &mut [f32]) -> Result<()> {
        if self.rank > 0 {
            self.peers[0].write_all(bytemuck::cast_slice(values)).map_err(failed("rank 0 is gone"))?;
        } else {
            let mut theirs = vec![0.0_f32; values.len()];
            for peer in &mut self.peers {
                peer.read_exact(bytemuck::cast_slice_mut(&mut theirs)).map_err(failed("another rank is gone"))?;
                values.iter_mut().zip(&theirs).for_each(|(v, t)| *v += t);
            }
        }
        self.tell(bytemuck::cast_slice_mut(values))
    }
}

/// Rank 0's connections. Whoever does not speak this protocol is sent away.
fn gather(world: usize, address: &str) -> Result<Vec<TcpStream>> {
    let mut found: Vec<Option<TcpStream>> = (1..world).map(|_| None).collect();
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let listening = TcpListener::bind(address).and_then(|l| l.set_nonblocking(true).map(|()| l));
    let listener = listening.map_err(|e| Error::config("MASTER_ADDR, MASTER_PORT", format!("cannot listen at {address} ({e}); another run may hold the port")))?;
    let start = Instant::now();
    while let Some(missing) = found.iter().position(Option::is_none) {
        if start.elapsed() > PATIENCE {
            return Err(Error::config("WORLD_SIZE", format!("rank {} has not come to {address} in {} s", missing + 1, PATIENCE.as_secs())));
        }
        match listener.accept() {
            Ok((peer, _)) => {
                if let Some(rank) = greeted(&peer).filter(|r| (1..world).contains(r)) {
                    found[rank - 1] = Some(peer);
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(BETWEEN_TRIES),
            Err(e) => return Err(failed("waiting for the other ranks")(e)),
        }
    }
    Ok(found.into_iter().flatten().collect())
}

/// The rank of who has connected.
fn greeted(mut peer: &TcpStream) -> Option<usize> {
    let mut greeting = [0; 8];
    peer.set_nonblocking(false).ok()?;
    peer.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    peer.read_exact(&mut greeting).ok()?;
    peer.set_read_timeout(None).ok()?;
    let (name, rank) = greeting.split_at(4);
    (name == GREETING).then(|| u32::from_le_bytes(rank.try_into().expect("four bytes")) as usize)
}

fn visit(rank: usize, address: &str) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(mut peer) => {
                let greeting = [GREETING, (rank as u32).to_le_bytes()].concat();
                peer.write_all(&greeting).map_err(failed("greeting rank 0"))?;
                return Ok(peer);
            }
            Err(e) if start.elapsed() > PATIENCE => {
                return Err(Error::config("MASTER_ADDR, MASTER_PORT", format!("rank 0 does not answer at {address} ({e})")));
            }
            Err(_) => std::thread::sleep(BETWEEN_TRIES),
        }
    }
}

/// A free port of this machine, for tests.
#[doc(hidden)]
pub fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its number").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_hear_and_sum_the_same() {
        let address = free_address();
        let ranks = (0..3).map(|rank| {
            let address = address.clone();
            std::thread::spawn(move || {
                let mut meeting = Meeting::new(rank, 3, &address).unwrap();
                let mut said = [rank as u8 + 7; 3];
                meeting.tell(&mut said).unwrap();
                let mut values = [1.5, 10.0 * rank as f32];
                meeting.sum(&mut values).unwrap();
                (said, values)
            })
        });
        for rank in ranks.collect::<Vec<_>>() {
            assert_eq!(rank.join().unwrap(), ([7; 3], [4.5, 30.0]));
        }
    }

    #[test]
    fn who_greets_otherwise_is_no_rank() {
        let address = free_address();
        let first = std::thread::spawn({
            let address = address.clone();
            move || Meeting::new(0, 2, &address).unwrap().sum(&mut [1.0]).map(|_| ())
        });
        for greeting in [b"GET / HT".to_vec(), [GREETING, 9_u32.to_le_bytes()].concat()] {
            let mut stranger = loop {
                if let Ok(peer) = TcpStream::connect(&address) {
                    break peer;
                }
            };
            stranger.write_all(&greeting).unwrap();
        }
        let mut second = Meeting::new(1, 2, &address).unwrap();
        let mut values = [2.0];
        second.sum(&mut values).unwrap();
        assert_eq!(values, [3.0]);
        first.join().unwrap().unwrap();
    }
}
