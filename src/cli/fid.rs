//! `recant fid`: the Fréchet inception distance of two sets of images, each printed with its protocol.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, ValueEnum};

use super::output::{Progress, refuse_overwriting, summary};
use super::{Global, run_folder};
use crate::data::dataset::{Dataset, Source};
use crate::data::mnist::{Mnist, Split, read_idx};
use crate::data::{celeba, folder};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::io::fingerprint::Fingerprint;
use crate::io::npz;
use crate::metrics::fid::{read_statistics, write_statistics};
use crate::metrics::{Extractor, FidProtocol, Origin, Preparation, Statistics, fid};
use crate::models::inception::{Block, Inception};
use crate::models::stylegan2::Generator;
use crate::ops::random::Random;
use crate::training::checkpoint::Checkpoint;
use crate::training::streams;
use crate::unlearning::feedback::{draw_latents, generate};

/// The preparations by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PreparationName {
    PytorchFid,
    CleanFid,
}

/// The Inception network and how it is asked, as options.
/// Data are not brought to sides beyond this.
const LARGEST_SIDE: usize = 1 << 13;

#[derive(Args, Clone, Debug)]
pub(crate) struct InceptionOptions {
    /// Inception weights: pt_inception-2015-12-05-6726825d.pth, or safetensors of the same names
    #[arg(long = "inception", id = "inception_weights")]
    pub weights: Option<PathBuf>,
    /// Feature block: 64, 192, 768 or 2048 (default: the last that the weights have)
    #[arg(long)]
    pub dims: Option<usize>,
    /// How images become the network's input
    #[arg(long, value_enum, default_value = "pytorch-fid")]
    pub preparation: PreparationName,
    /// Images through the network at a time
    #[arg(long, default_value_t = 16)]
    pub fid_batch: usize,
}

impl InceptionOptions {
    fn preparation(&self) -> Preparation {
        match self.preparation {
            PreparationName::PytorchFid => Preparation::PytorchFid,
            PreparationName::CleanFid => Preparation::CleanFid,
        }
    }

    /// The network under its protocol, on `device`; none without weights. `size`: the side that real images are brought
    /// to first.
    pub fn extractor(&self, size: Option<usize>, device: &Device) -> Result<Option<Extractor>> {
        if self.fid_batch == 0 {
            return Err(Error::config("--fid-batch", "must be at least 1"));
        }
        let block = self.dims.map(Block::from_dims).transpose()?;
        let Some(path) = &self.weights else { return Ok(None) };
        let net = Inception::read(path)?.to_device(device)?;
        let block = block.unwrap_or(net.last_block());
        Extractor::new(net, FidProtocol { preparation: self.preparation(), block, size }).map(Some)
    }
}

/// One side of a comparison.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    Data(Source),
    /// An IDX file of images.
    Idx(PathBuf),
    Model(PathBuf),
    Statistics(PathBuf),
}

impl FromStr for Side {
    type Err = Error;

    fn from_str(text: &str) -> Result<Side> {
        if ["mnist:", "folder:", "celeba:", "npz:"].iter().any(|kind| text.starts_with(kind)) {
            return match text.parse()? {
                Source::Npz(file) if holds_statistics(&file)? => Ok(Side::Statistics(file)),
                source => Ok(Side::Data(source)),
            };
        }
        let path = PathBuf::from(text);
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_lowercase();
        match extension.as_str() {
            _ if path.is_dir() => Ok(Side::Data(Source::Folder(path))),
            _ if !path.exists() => Err(Error::file(path, "does not exist; give a folder of pictures, an npz, an IDX file or a model")),
            "npz" if holds_statistics(&path)? => Ok(Side::Statistics(path)),
            "npz" => Ok(Side::Data(Source::Npz(path))),
            "safetensors" | "pt" | "pth" => Ok(Side::Model(path)),
            _ if text.contains("ubyte") => Ok(Side::Idx(path)),
            _ => Err(Error::file(path, "is none of a folder of pictures, an npz, an IDX file (…-ubyte) and a model (.safetensors, .pt, .pth)")),
        }
    }
}

fn holds_statistics(file: &Path) -> Result<bool> {
    Ok(!npz::read_only(file, &[], &["mu"])?.is_empty())
}

impl Side {
    fn path(&self) -> &Path {
        match self {
            Side::Data(Source::Mnist(p) | Source::Folder(p) | Source::Celeba(p) | Source::Npz(p)) | Side::Idx(p) | Side::Model(p) | Side::Statistics(p) => p,
        }
    }

    /// Files whose names, sizes and times of change stand for the images.
    fn files(&self, without: Option<&str>) -> Result<Vec<PathBuf>> {
        match (self, without) {
            (Side::Data(Source::Folder(folder)), None) => Ok(folder::list(folder)?.files),
            (Side::Data(Source::Folder(folder)), Some(class)) => folder::list(folder)?.without(class),
            (Side::Data(Source::Celeba(folder)), class) => celeba::list_without(folder, class),
            (Side::Data(Source::Mnist(folder)), _) => Ok(vec![Mnist::images_file(folder, Split::Train)?]),
            _ => Ok(vec![self.path().to_path_buf()]),
        }
    }

    /// Whether each image is a file of its own, read when its turn comes.
    fn is_pictures(&self) -> bool {
        matches!(self, Side::Data(Source::Folder(_) | Source::Celeba(_)))
    }
}

/// Which images of a data set.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub(super) enum Chosen {
    All,
    /// The first so many.
    First(usize),
    /// So many at equal steps, so that data in the order of their classes give some of each.
    Spread(usize),
}

impl Chosen {
    /// Indices of the chosen among `n`; none where that is all.
    fn of(self, n: usize) -> Option<Vec<usize>> {
        match self {
            Chosen::First(k) if k < n => Some((0..k).collect()),
            Chosen::Spread(k) if k < n => Some((0..k).map(|i| i * n / k).collect()),
            _ => None,
        }
    }
}

/// Takes statistics of images.
pub(super) struct Taker<'a> {
    pub extractor: &'a Extractor,
    pub batch: usize,
    /// Which of the images.
    pub chosen: Chosen,
    /// Leaves out a class, or the images with an attribute.
    pub without: Option<String>,
    /// Keeps the statistics of data beside them, and takes those that it finds there.
    pub cache: bool,
}

impl Taker<'_> {
    /// Of a data set; from its cache if that is of the same images, weights and protocol.
    pub fn data(&self, side: &Side) -> Result<Statistics> {
        let files = side.files(self.without.as_deref())?;
        let mut images = Fingerprint::default();
        files.iter().try_for_each(|f| images.add_file(f))?;
        let origin = Origin { protocol: Some(self.extractor.protocol()), weights: Some(self.extractor.weights()), fingerprint: Some(images.finish()) };
        let cache = self.cache.then(|| self.cache_file(side, &origin));
        if let Some(file) = cache.as_ref().filter(|f| f.exists()) {
            match read_statistics(file) {
                Ok((statistics, found)) if found == origin => {
                    eprintln!("statistics of {} as kept in {}", side.path().display(), file.display());
                    return Ok(statistics);
                }
                Ok(_) => eprintln!("{} has changed since its statistics were kept: they are taken again", side.path().display()),
                Err(e) => eprintln!("warning: {e}: the statistics are taken again"),
            }
        }
        let statistics = self.take(side, files)?;
        if let Some(file) = &cache
            && let Err(e) = write_statistics(file, &statistics, &origin)
        {
            eprintln!("warning: the statistics are not kept: {e}");
        }
        Ok(statistics)
    }

    /// Beside the data, hidden: another for each protocol, weights, number of images and class left out.
    fn cache_file(&self, side: &Side, origin: &Origin) -> PathBuf {
        let mut key = Fingerprint::default();
        let about = (&origin.protocol, &origin.weights, self.chosen, &self.without);
        key.add(&serde_json::to_vec(&about).expect("plain data"));
        let (path, name) = (side.path(), format!("recant-fid-{:016x}.npz", key.finish()));
        if path.is_dir() { path.join(format!(".{name}")) } else { path.with_file_name(format!(".{}.{name}", path.file_name().unwrap_or_default().to_string_lossy())) }
    }

    fn take(&self, side: &Side, files: Vec<PathBuf>) -> Result<Statistics> {
        let what = side.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let size = self.extractor.protocol().size;
        if side.is_pictures() {
            let files = self.chosen.of(files.len()).map_or(files.clone(), |chosen| chosen.into_iter().map(|i| files[i].clone()).collect());
            return watched(&what, files.len(), |progress| self.extractor.pictures(&files, self.batch, progress));
        }
        let data = match side {
            Side::Data(source) => match &self.without {
                None => source.read(Split::Train, size)?,
                Some(class) => {
                    let data = source.read(Split::Train, size)?;
                    data.without_class(data.class(class)?)?
                }
            },
            Side::Idx(file) => read_digits(file, size)?,
            Side::Model(_) | Side::Statistics(_) => unreachable!("no data"),
        };
        let data = self.chosen.of(data.len()).map_or(data.clone(), |chosen| data.subset(&chosen));
        watched(&what, data.len(), |progress| self.extractor.dataset(&data, self.batch, progress))
    }

    /// Of `n` images of a model, made on `device`: EMA weights, single z, fresh noise, no truncation.
    pub fn model(&self, path: &Path, n: usize, seed: u64, device: &Device) -> Result<Statistics> {
        let model = Checkpoint::open(path)?;
        let params = model.g_ema.to_device(device)?;
        let g = Generator::new(model.config.clone());
        let latents = draw_latents(&g, n, seed, streams::EVALUATION);
        let mut rng = Random { counter: 1 << 40, ..Random::new(seed, streams::EVALUATION) };
        let mut stats = self.extractor.start();
        watched(&path.file_name().unwrap_or_default().to_string_lossy(), n, |progress| {
            generate(&g, &params, &latents, &mut rng, &mut |_, images, _| {
                for at in (0..images.dim(0)).step_by(self.batch) {
                    self.extractor.add_images(&mut stats, &images.rows(at, self.batch.min(images.dim(0) - at))?)?;
                    progress(stats.count())?;
                }
                Ok(())
            })
        })?;
        stats.finish()
    }
}

/// Runs `job` under a progress bar that Ctrl-C ends.
fn watched<T>(what: &str, total: usize, job: impl FnOnce(&mut dyn FnMut(usize) -> Result<()>) -> Result<T>) -> Result<T> {
    let mut progress = Progress::new(what, 0, total as u64);
    let result = job(&mut |done| {
        progress.at(done as u64, String::new);
        run_folder::stop_if_interrupted()
    })?;
    progress.finish();
    Ok(result)
}

/// The images of an IDX file as a data set.
fn read_digits(file: &Path, size: Option<usize>) -> Result<Dataset> {
    let (sizes, images) = read_idx(file, 3)?;
    if images.is_empty() {
        return Err(Error::file(file, "holds no image; download it again"));
    }
    let labels = vec![0; sizes[0]];
    let digits = Mnist { images, height: sizes[1], width: sizes[2], labels };
    Ok(Dataset { labels: None, class_names: Vec::new(), ..Dataset::from(size.map(|s| digits.resized(s)).unwrap_or(digits)) })
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Fid {
    /// folder:DIR, mnist:DIR (the 60,000), celeba:DIR, npz:FILE (images or mu and sigma), a model, an IDX file, or the bare
    /// path of a folder or npz
    a: String,
    /// The other; without one, --save keeps the statistics of the first
    b: Option<String>,
    #[command(flatten)]
    inception: InceptionOptions,
    /// Bring data to this side in pixels first, as a model's training images were (default: the model's, if one is given)
    #[arg(long)]
    size: Option<usize>,
    /// Take only the first images of each set of data
    #[arg(long)]
    first: Option<usize>,
    /// Leave this class, or the images with this attribute, out of each set of data
    #[arg(long)]
    without: Option<String>,
    /// Images of a model
    #[arg(long, default_value_t = 10_000)]
    n: usize,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Do not keep the statistics of data beside them, and take none from there
    #[arg(long)]
    no_cache: bool,
    /// Write the statistics of the first set (npz with mu and sigma, as pytorch-fid's)
    #[arg(long)]
    save: Option<PathBuf>,
}

impl Fid {
    pub fn run(&self, global: &Global) -> Result<()> {
        let start = std::time::Instant::now();
        let device = global.open()?;
        if let Some(file) = &self.save {
            let inputs: Vec<&Path> = [Some(&self.a), self.b.as_ref()].into_iter().flatten().map(Path::new).collect();
            refuse_overwriting(file, &inputs)?;
        }
        if self.b.is_none() && self.save.is_none() {
            return Err(Error::config("B", "is missing: give two sets to compare, or --save for the statistics of one"));
        }
        if self.first.is_some_and(|n| n < 2) || self.n < 2 {
            return Err(Error::config("--first, --n", "must be at least 2: one image has no covariance"));
        }
        let sides: Vec<Side> = std::iter::once(&self.a).chain(&self.b).map(|s| s.parse()).collect::<Result<_>>()?;
        let extractor = self.inception.extractor(self.size_of(&sides)?, &device)?;
        let mut taken = Vec::new();
        for side in &sides {
            taken.push(self.statistics(side, extractor.as_ref(), &device)?);
        }
        if let Some(file) = &self.save {
            write_statistics(file, &taken[0].0, &taken[0].1)?;
            println!("statistics of {} images: {}", taken[0].0.count.map_or("unknown".into(), |n| n.to_string()), file.display());
        }
        let [(a, of_a), (b, of_b)] = &taken[..] else {
            summary(global, &serde_json::json!({"images": taken[0].0.count, "out": self.save, "seconds": start.elapsed().as_secs_f64(), "device": device.to_string()}));
            return Ok(());
        };
        let report = fid(self.protocol([of_a, of_b], extractor.as_ref(), a.dims())?, a, b)?;
        let seconds = start.elapsed().as_secs_f64();
        println!("{report}");
        summary(
            global,
            &serde_json::json!({
                "distance": report.distance, "name": report.protocol.name(), "protocol": report.protocol.to_string(),
                "images": report.images, "seconds": seconds, "device": device.to_string(),
            }),
        );
        Ok(())
    }

    /// The side that data are brought to.
    fn size_of(&self, sides: &[Side]) -> Result<Option<usize>> {
        let models = sides.iter().filter_map(|s| if let Side::Model(path) = s { Some(path) } else { None });
        let sizes = models.map(|path| Ok(Checkpoint::open(path)?.config.size)).collect::<Result<Vec<_>>>()?;
        if let Some(size) = self.size.filter(|size| !(1..=LARGEST_SIDE).contains(size)) {
            return Err(Error::config("--size", format!("{size} must be from 1 to {LARGEST_SIDE} pixels")));
        }
        Ok(self.size.or(sizes.first().copied()))
    }

    fn statistics(&self, side: &Side, extractor: Option<&Extractor>, device: &Device) -> Result<(Statistics, Origin)> {
        if let Side::Statistics(file) = side {
            return read_statistics(file);
        }
        let extractor = extractor.ok_or_else(|| {
            Error::config("--inception", "is needed to take features of images; give pt_inception-2015-12-05-6726825d.pth or safetensors of the same names")
        })?;
        let taker = Taker { extractor, batch: self.inception.fid_batch, chosen: self.first.map_or(Chosen::All, Chosen::First), without: self.without.clone(), cache: !self.no_cache };
        let statistics = match side {
            Side::Model(path) => taker.model(path, self.n, self.seed, device)?,
            side => taker.data(side)?,
        };
        Ok((statistics, Origin { protocol: Some(extractor.protocol()), weights: Some(extractor.weights()), fingerprint: None }))
    }

    /// The protocol that both sides were taken under. A file that does not say it is believed to be of the other's.
    fn protocol(&self, [a, b]: [&Origin; 2], extractor: Option<&Extractor>, dims: usize) -> Result<FidProtocol> {
        let differ = |what: &str| Err(Error::config("statistics", format!("were taken {what}: take both in the same way")));
        if let (Some(wa), Some(wb)) = (a.weights, b.weights)
            && wa != wb
        {
            return differ("with different Inception weights");
        }
        match (a.protocol, b.protocol) {
            (Some(pa), Some(pb)) if pa != pb => differ(&format!("under different protocols ({pa}; {pb})")),
            (Some(p), _) | (_, Some(p)) => Ok(p),
            (None, None) => match extractor {
                Some(e) => Ok(e.protocol()),
                None => Ok(FidProtocol { preparation: Preparation::Unknown, block: Block::from_dims(dims)?, size: None }),
            },
        }
    }
}
