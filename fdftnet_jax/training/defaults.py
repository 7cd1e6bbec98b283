"""Every field of a run, with its default and meaning, and the recipe of `adapt`.

The config files start here. Fields are overridden on the command line:
`--config.data.dir=PATH`.
"""

from typing import Any

import ml_collections

# What detects on photographs, from weights that know photographs, in place of the
# defaults; chosen on validation pictures alone (docs/results.md).
FROM_IMAGENET: dict[str, Any] = {
    "init_from": "imagenet",
    "model.kind": "fdftnet",
    # Native resolution: reducing a picture takes the traces away. Windows train, the
    # whole of a picture of up to 256x256 is scored: better than the mean of windows.
    "data.view": "crops",
    "data.size": 256,
    "data.train_size": 128,
    "data.crop_grid": 1,
    # Pictures of the old forgery, per class, among those of the new one.
    "data.replay": 200,
    # The backbone's maps of small depth, too, which hold what is left of the traces.
    "model.taps": True,
    # Beside the network, a regression on the backbone as it was before training.
    "model.regression": True,
    # All of it is trained from the start.
    "trainable": "all",
    "release_epoch": 0,
    "batch_size": 32,
    "epochs": 32,
    # A few mistakes that it is sure of raise the loss of validation while the order of
    # its pictures still improves: the end of the schedule is the result.
    "keep": "last",
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.01,
    "optimizer.backbone_rate": 1.0,
    "optimizer.warmup_epochs": 3.0,
    "optimizer.clip_norm": 1.0,
    # The windows differ in every epoch: no warp, which interpolates, and no Cutout.
    "augment.flip": True,
    "augment.zoom": 0.0,
    "augment.rotation": 0.0,
    "augment.translation": 0,
    "augment.cutout_alpha": 0,
    # What messengers and social networks do to pictures.
    "augment.jpeg": 0.3,
    "augment.rescale": 0.3,
}


def probe(backbone: str) -> dict[str, Any]:
    """The fields of a logistic regression on frozen features, over those of a recipe.

    The mean and deviation of feature maps of many depths are computed once, from the
    pictures as they are and from windows of compressed and scaled versions of them.

    Args:
      backbone: whose features they are; only some have taps of every block.
    """
    # (The rest of this file does without JAX.)
    from fdftnet_jax.models import registry

    return {
        "model.kind": "linear",
        "model.taps": True,
        "model.block_taps": registry.has_block_taps(backbone),
        "model.regression": False,
        "trainable": "head",
        "release_epoch": 0,
        "epochs": 1,
        # Validated as it is scored in the end, not by one window of a picture.
        "keep": "best",
        "optimizer.name": "logistic",
        "optimizer.backbone_rate": 1.0,
        "augment.zoom": 0.0,
        "augment.rotation": 0.0,
        "augment.translation": 0,
        "augment.flip": False,
        "augment.cutout_alpha": 0,
    }


def get_config() -> ml_collections.ConfigDict:
    """Returns the fields that pre-training and fine-tuning share, with defaults."""
    config = ml_collections.ConfigDict()
    # Seed of everything random: initialisation, order, augmentation, dropout.
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    # 'folder' (images on disk), 'toy' (made by the package), or a set of the paper:
    # 'pggan', 'deepfakes', 'face2face' or 'dfd'.
    config.data.name = "toy"
    # folder: PATH with {real,fake}/ or {train,validation,test,finetune}/{real,fake}/.
    # The paper's sets: PATH laid out as celeba_pggan.py (pggan) and faceforensics.py of
    # fdftnet_jax/paper_sets say.
    config.data.dir = ""
    # folder: what must not be split apart: 'file', 'folder', 'picture' (by its pixels,
    # so that it stays in its split wherever it lies), or a regex on the path below the
    # class folder whose first group (or whole match) names the group.
    config.data.group_by = "file"
    # folder: the generator of a fake: 'folder' (first sub-folder) or a regex.
    config.data.generator_by = "folder"
    # folder, paper's sets: share of the groups in each split, by a stable hash of the
    # group; official splits leave only train : finetune to them.
    config.data.fractions = ml_collections.ConfigDict(
        {"train": 0.5, "validation": 0.1, "test": 0.2, "finetune": 0.2}
    )
    # folder, paper's sets: a picture in both classes or in two splits is an 'error', or
    # all but one of its files are left out ('drop').
    config.data.duplicates = "error"
    # The same: the largest share of its image files that may be unusable, in 0..1.
    config.data.max_rejected = 0.05
    # paper's sets of videos: the compression, 'raw', 'c23' or 'c40'.
    config.data.compression = "c23"
    # paper's sets: images of each split at most, half of them real, drawn evenly from
    # the videos by a stable hash; 0 takes all. `parse` below sets Table 4's.
    config.data.limits = ml_collections.ConfigDict(
        {"train": 0, "validation": 0, "test": 0, "finetune": 0}
    )
    # toy: 'upsampled', 'blended', or 'both'.
    config.data.family = "both"
    # toy: seed of the pictures (not of the training).
    config.data.toy_seed = 0
    # toy: images of each class in each split.
    config.data.toy_examples = ml_collections.ConfigDict(
        {"train": 2000, "validation": 250, "test": 500, "finetune": 1000}
    )
    # Where prepared datasets are kept; '' is $XDG_CACHE_HOME/fdftnet_jax.
    config.data.cache_dir = ""
    # The split that trains: 'train', or 'finetune' for FDFtNet.
    config.data.train_split = "train"
    # Generators whose fakes are neither trained on nor validated with, with commas
    # between them: an evaluation then says how those fare that were never seen.
    config.data.held_out = ""
    # Images per class drawn from the training split by the seed; 0 takes all.
    config.data.shots = 0
    # Images of the old forgery, per class, that are mixed with the training split, and
    # of its validation split with the validation split; 0 for none.
    config.data.replay = 0
    # The folder of the old forgery; '' is what init_from was trained on last. (Where it
    # names no other data set than the run's own, there is no replay.) A folder that is
    # new is split by its files, 60:10:30 into train, validation and test, or, with
    # group_by=picture, like the run's own.
    config.data.replay_dir = ""
    # How a record becomes the network's input: 'resize' stretches the whole image,
    # 'crops' cuts windows at native resolution, anywhere in training, on a fixed grid
    # (whose logits are averaged) in evaluation.
    config.data.view = "resize"
    # crops: windows of the grid along each axis, from edge to edge.
    config.data.crop_grid = 3
    # crops: whether each is scored mirrored, too, at twice the work.
    config.data.crop_mirror = False
    # What a picture file shows: 'srgb' converts its colours to sRGB by its profile and
    # lays transparency over white; 'stored' takes the numbers of the file.
    config.data.decoding = "srgb"
    # Side of the network's square input, in pixels.
    config.data.size = 64
    # crops: side of the windows that are trained on, where images are scored by larger
    # ones; 0 for data.size. An image smaller than data.size is enlarged to it in both.
    # A regression is fitted to such windows, too, of up to 2,000 images (see augment).
    config.data.train_size = 0
    # Scaling of the pixels: 'minus_one_one', 'zero_one', 'imagenet' or 'clip' (mean and
    # standard deviation of these); '' is what the weights of init_from expect, or
    # [-1, 1].
    config.data.scaling = ""
    # Decoded views of each split are kept in memory up to this many megabytes.
    config.data.memory_megabytes = 2048
    # Decoded views of the training split are put on every device once, where they take
    # up to this many megabytes and one process trains; 0 sends each batch.
    config.data.device_megabytes = 256
    # Reader threads.
    config.data.threads = 4

    config.model = ml_collections.ConfigDict()
    # 'classifier' (the backbone with its own top), 'fdftnet', or 'linear' (one dense
    # layer on the mean of the backbone's features).
    config.model.kind = "classifier"
    # 'squeezenet', 'shallownetv3', 'resnet50v2', 'xception', 'efficientnet_lite0',
    # 'vit', or MODULE:ATTRIBUTE of your own.
    config.model.backbone = "squeezenet"
    # fdftnet: N, the number of MBblockV3 on the backbone's features (Table 3).
    config.model.num_blocks = 4
    # fdftnet: M, the number of stages of the Fine-Tune Transformer (Table 2); 0 is
    # none of it.
    config.model.num_stages = 3
    # fdftnet: stride of the first MBblockV3; the others have 1.
    config.model.first_stride = 1
    # fdftnet: side of the images of the Fine-Tune Transformer where config.data.size is
    # larger; 0 for the same. The backbone sees them at their size.
    config.model.ftt_size = 64
    # fdftnet: how they get it: 'whole' reduces the picture, 'window' cuts its centre.
    config.model.ftt_view = "whole"
    # fdftnet: what is left of them: '' all, 'npr' the differences within blocks of 2x2
    # pixels, 'srm' the 30 residuals of the spatial rich model.
    config.model.ftt_filter = ""
    # fdftnet, linear: whether the mean and deviation of the backbone's feature maps of
    # several depths are classified, too.
    config.model.taps = False
    # taps, efficientnet_lite0: those of every block of the first six stages, and of the
    # wide maps inside the blocks of the fourth to sixth, in place of one of each stage.
    config.model.block_taps = False
    # fdftnet: whether a logistic regression on the taps of the backbone as it was
    # before training (of every block, where it has those) adds its log odds to the
    # network's: not in training and its validation, but wherever else pictures are
    # scored. That takes 1.7 times as long with it.
    config.model.regression = False

    # Where the backbone comes from: the workdir of an earlier run (its best one), or a
    # detector's file; a file of weights: Keras's .keras, .weights.h5 or .h5, a PyTorch
    # state dict as .safetensors or .pth; or 'imagenet', 'clip' or 'dinov2', published
    # weights of the backbone. '' starts pre-training from new weights; fdftnet needs
    # one.
    config.init_from = ""
    # From a run or a detector of the same network: start with all its layers, not with
    # its backbone alone. A regression is pulled to its coefficients then, not to zero.
    config.init_heads = False
    # init_heads: weight of distillation (Li and Hoiem 2018), the divergence from what
    # the network that training starts from says of an image, where that is right (a
    # regression beside it does not count). It holds on to an old forgery of which no
    # picture is at hand; 0 is none of it.
    config.distillation = 0.0
    # Start from new weights all the same: init_from names the data of replay alone.
    config.new_weights = False
    # What is trained: 'all', or 'head' (everything but the backbone).
    config.trainable = "all"
    # trainable=head: the epoch from which the backbone is trained, too; 0 for never.
    # trainable=all trains it from the start.
    config.release_epoch = 0
    # Classes of unequal number: 'weights' of the loss or 'batches' with as many of each
    # count both the same, and so does the validation loss then; 'none' does nothing.
    config.class_balance = "none"

    # What the network computes in: 'float32', or 'bfloat16' for GPUs and TPUs.
    # Parameters, statistics, softmax and loss are float32 in both.
    config.dtype = "float32"
    # Images in a global batch, over all devices; the devices must divide it.
    config.batch_size = 128
    # Longest run, and the length of the cosine schedule.
    config.epochs = 300
    # Steps that the devices make at one call from the host; a signal stops between two
    # calls. For GPUs and TPUs: a CPU runs convolutions in such a loop far slower.
    config.steps_per_call = 1
    # Stop after this many epochs without a lower validation loss.
    config.patience = 20
    # The checkpoint that is the result: 'best', with the lowest validation loss, or
    # 'last', at the end of the schedule, before which nothing stops then. With 'last'
    # the loss of validation is that of one window in the middle of each image.
    config.keep = "best"

    config.optimizer = ml_collections.ConfigDict()
    # 'sgd' with momentum, 'adamw', or, for linear on a frozen backbone, 'logistic':
    # no epochs, but a logistic regression on features computed once.
    config.optimizer.name = "sgd"
    # Peak of the cosine schedule. AdamW's is far lower than SGD's: 0.0005 or so.
    config.optimizer.learning_rate = 0.3
    # sgd: the momentum.
    config.optimizer.momentum = 0.9
    # adamw: the share of a kernel that a step takes away, times the learning rate.
    config.optimizer.weight_decay = 0.0
    # Epochs of linear warm-up before the cosine.
    config.optimizer.warmup_epochs = 0.0
    # Largest global norm of a gradient; 0 does not clip.
    config.optimizer.clip_norm = 0.0
    # Share of the learning rate that a backbone below other layers gets.
    config.optimizer.backbone_rate = 1.0
    # Strength of L2-SP, a pull of that backbone's weights to where they started.
    config.optimizer.l2_sp = 0.0

    # After the training, by its best checkpoint's scores of the validation split.
    config.calibration = ml_collections.ConfigDict()
    # The threshold: 'eer' (as many of the real images are called fake as of the fake
    # ones real), 'fpr' (most fakes are found within a false positive rate), or 'band':
    # two thresholds, between which a picture is undecided, too close to call.
    config.calibration.rule = "eer"
    # rule 'fpr': the largest share of validation's real images called fake, in 0..1.
    config.calibration.fpr = 0.01
    # rule 'band': the largest share of wrong verdicts among validation's pictures that
    # are decided, in 0..0.5, weighted so that a share `prior` of them is fake.
    config.calibration.max_wrong = 0.02
    # Share of fakes among the pictures that will be scored, which P(fake) is for; 0 is
    # their share of the images that were trained on.
    config.calibration.prior = 0.5

    config.augment = ml_collections.ConfigDict()
    # Zoom per axis, uniform in 1 +- this.
    config.augment.zoom = 0.0
    # Rotation, uniform in +- this many degrees.
    config.augment.rotation = 0.0
    # Translation per axis, whole pixels, uniform in +- this.
    config.augment.translation = 0
    # Horizontal flip of half of the images.
    config.augment.flip = False
    # Cutout: 0..alpha squares of 4 * U{1..beta} pixels.
    config.augment.cutout_alpha = 0
    config.augment.cutout_beta = 5
    # Before all that, on the host and at a picture's own size, anew in each epoch, or
    # for each window that a regression is fitted to:
    # probability of JPEG compression, quality drawn evenly from 30 to 95.
    config.augment.jpeg = 0.0
    # Probability of Gaussian blur, sigma drawn evenly from 0.5 to 3 pixels.
    config.augment.blur = 0.0
    # Probability of down- and upscaling, by a factor drawn evenly from 0.35 to 1. Blur
    # comes first, compression last; validation pictures meet none of the three.
    config.augment.rescale = 0.0
    return config
