"""Published per-channel means and standard deviations, so that results compare with the field's."""

FASHION_MNIST_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

Constants = tuple[tuple[float, ...], tuple[float, ...]]

FASHION_MNIST: Constants = ((0.2861,), (0.3530,))
CIFAR10: Constants = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100: Constants = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET: Constants = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

BY_NAME: dict[str, Constants] = {
    "fashion_mnist": FASHION_MNIST,
    "fashion-mnist": FASHION_MNIST,
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "tiny-imagenet": IMAGENET,
    "imagenet-1k": IMAGENET,
}  # the last part of a hub name, lower case
