"""The plain references: each loop as the published DC, DSA and TrustDD code writes it, in eager PyTorch, class by class and batch by batch.

Nothing here is meant to be fast, and nothing is made slow on purpose: where the published code does something slower for no reason
of the method (per-image loops in the augmentation, decoding every image twice), the faster form stands here. README.md lists these.
"""
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from trustdd.data.augment import augment, draw


def class_criterion(c):
    "Cross-entropy to class `c`, as a function of logits."
    criterion = nn.CrossEntropyLoss()
    return lambda output: criterion(output, torch.ones(len(output), dtype=torch.long, device=output.device) * c)


def outlier_criterion(output):
    "Cross-entropy to the uniform distribution, as Outlier Exposure writes it."
    return -(output.mean(1) - torch.logsumexp(output, dim=1)).mean()


def layer_distance(real, syn):
    "Sum over output channels of one minus cosine; nothing for biases and norms."
    if real.ndim == 1: return torch.tensor(0.0, device=real.device)
    real, syn = real.reshape(len(real), -1), syn.reshape(len(syn), -1)
    return torch.sum(1 - torch.sum(real * syn, dim=-1) / (torch.norm(real, dim=-1) * torch.norm(syn, dim=-1) + 1e-6))


def outer_step(net, syn, optimizer, real, omega, criterion, align_corners):
    "One step on `syn` (C·per, C, H, W): distances of all classes summed, one backward, one SGD step; `real`, `omega`, `criterion` are functions of the class."
    parameters, n_classes = list(net.parameters()), net.head.out_features
    per, loss = len(syn) // n_classes, torch.tensor(0.0, device=syn.device)
    for c in range(n_classes):
        img_real = augment(real(c), omega(c), align_corners)
        img_syn = augment(syn[c * per:(c + 1) * per], omega(c), align_corners)
        gradient_real = [g.detach().clone() for g in torch.autograd.grad(criterion(c)(net(img_real)), parameters)]
        gradient_syn = torch.autograd.grad(criterion(c)(net(img_syn)), parameters, create_graph=True)
        loss = loss + sum(layer_distance(r, s) for r, s in zip(gradient_real, gradient_syn))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def embedding_step(net, syn, optimizer, real, omega, criterion, align_corners):
    "The same with squared distances of mean embeddings (DM); `criterion` is not used, and the parameters of `net` are frozen."
    n_classes = net.head.out_features
    per, loss = len(syn) // n_classes, torch.tensor(0.0, device=syn.device)
    for c in range(n_classes):
        output_real = net.body(augment(real(c), omega(c), align_corners)).detach()
        output_syn = net.body(augment(syn[c * per:(c + 1) * per], omega(c), align_corners))
        loss = loss + torch.sum((torch.mean(output_real, dim=0) - torch.mean(output_syn, dim=0)) ** 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def loader(*tensors, order, batch):
    "Batches of a `TensorDataset`; `order` is a list of row numbers that may be refilled before each epoch."
    return DataLoader(TensorDataset(*tensors), batch_size=batch, sampler=order, num_workers=0)


def train_epoch(net, loader_in, loader_out, optimizer, generator, exp):
    "One epoch on labelled images and, unless `loader_out` is None, outliers beside them; (mean loss, accuracy)."
    device, criterion = next(net.parameters()).device, nn.CrossEntropyLoss()
    total, right, seen = 0, 0, 0
    net.train()
    for (img, lab), *rest in zip(*(l for l in (loader_in, loader_out) if l is not None)):
        lab, data = lab.to(device), torch.cat([img, *(out for out, in rest)]).to(device)
        output = net(augment(data, draw(exp.strategy, len(data), generator), exp.align_corners))
        loss = criterion(output[:len(lab)], lab)
        if rest: loss = loss + exp.lam * outlier_criterion(output[len(lab):])
        right += np.sum(np.equal(np.argmax(output[:len(lab)].detach().cpu().numpy(), axis=-1), lab.cpu().numpy()))
        total += loss.item() * len(lab)
        seen += len(lab)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return total / seen, right / seen


SCORES = dict(
    msp=lambda output: F.softmax(output, dim=1).cpu().numpy().max(axis=1),
    max_logit=lambda output: output.cpu().numpy().max(axis=1),
    energy=lambda output: torch.logsumexp(output, dim=1).cpu().numpy(),
)


def scores_of(net, batches, score):
    "(score of every image, how many were classified rightly)."
    device, scores, right = next(net.parameters()).device, [], 0
    with torch.no_grad():
        for data, target in batches:
            output = net(data.to(device))
            scores.append(SCORES[score](output))
            right += int((output.argmax(1).cpu() == target).sum())
    return np.concatenate(scores), right


def measures(positive, negative):
    "(AUROC, average precision, false positive rate at the first threshold with recall of 0.95), percent."
    marks, scores = np.r_[np.ones(len(positive)), np.zeros(len(negative))], np.r_[positive, negative]
    fpr, tpr, _ = roc_curve(marks, scores, drop_intermediate=False)
    return 100 * roc_auc_score(marks, scores), 100 * average_precision_score(marks, scores), 100 * fpr[np.argmax(tpr >= 0.95)]


def ood_suite(net, in_dist, ood_sets, batch=256):
    "(accuracy in percent, score -> OOD set -> (AUROC, AUPR-in, AUPR-out, FPR95-in, FPR95-out)): for each score the networks look at every set again."
    batches, result = lambda tensors: DataLoader(TensorDataset(*tensors), batch_size=batch, num_workers=0), {}
    net.eval()
    for score in SCORES:
        inside, right = scores_of(net, batches(in_dist), score)
        result[score] = {}
        for name, tensors in ood_sets.items():
            outside, _ = scores_of(net, batches(tensors), score)
            (auroc, aupr_in, fpr_in), (_, aupr_out, fpr_out) = measures(inside, outside), measures(-outside, -inside)
            result[score][name] = (auroc, aupr_in, aupr_out, fpr_in, fpr_out)
    return 100 * right / len(inside), result


def load_folder(folder):
    "(images uint8 (n, C, H, W), labels) of class folders, item by item through torchvision."
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor
    items = ImageFolder(folder, transform=PILToTensor())
    images, labels = zip(*(items[i] for i in range(len(items))))
    return torch.cat([image.unsqueeze(0) for image in images]), torch.tensor(labels)
