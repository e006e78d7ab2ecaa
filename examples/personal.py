"""A hundred personal adapters from one run: one base in memory, and for each user a vector of 32 numbers.

    python examples/personal.py                                    # made-up users, in MovieLens' files
    python examples/personal.py --data ml-latest-small --d 64      # the real ones (grouplens.org/datasets/movielens)

The base learns from everybody's ratings together. Then one attached adapter is trained for one user after the other: theta
goes back to 0, the optimizer is new, the folder is the user's. All adapters have one seed, and so one layout: they can be
added up, and a server switches between them by copying 32 numbers.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from gpart import GPartAdapter, GPartConfig, attach, load_adapter
from gpart.arithmetic import combine, read
from gpart.serving import AdapterStore, Switch

GENRES = ["Action", "Animation", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Horror", "Romance", "Sci-Fi", "Thriller", "War"]  # fmt: skip


@dataclass
class User:
    """What one user has rated: what to learn from, and what to be measured on."""

    films: Tensor  # (count, features)
    ratings: Tensor  # (count,)
    test_films: Tensor
    test_ratings: Tensor


def make_data(folder: Path, users: int, films: int = 300, each: int = 60) -> None:
    """Writes movies.csv and ratings.csv as MovieLens has them; every user likes and dislikes genres of their own."""
    draw = torch.Generator().manual_seed(0)
    with (folder / "movies.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["movieId", "title", "genres"])
        of_film = [torch.randperm(len(GENRES), generator=draw)[:2].tolist() for _ in range(films)]
        writer.writerows(
            [number, f"Film {number}", "|".join(GENRES[at] for at in sorted(its))]
            for number, its in enumerate(of_film, 1)
        )
    liked = torch.linspace(-0.5, 0.5, len(GENRES))  # by everybody, and then by each
    with (folder / "ratings.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["userId", "movieId", "rating", "timestamp"])
        for user in range(1, users + 1):
            taste = liked + 0.8 * torch.randn(len(GENRES), generator=draw)
            for number in torch.randperm(films, generator=draw)[:each].tolist():
                rating = 3.0 + taste[of_film[number]].sum().item() + 0.3 * torch.randn(1, generator=draw).item()
                writer.writerow([user, number + 1, min(5.0, max(0.5, round(2 * rating) / 2)), 0])


def read_data(folder: Path, users: int) -> dict[str, User]:
    """The users with the most ratings, by name; every fourth rating is for the test."""
    with (folder / "movies.csv").open(newline="", encoding="utf-8") as file:
        genres = {row["movieId"]: row["genres"].split("|") for row in csv.DictReader(file)}
    known = sorted({genre for its in genres.values() for genre in its})
    features = {film: torch.tensor([float(genre in its) for genre in known]) for film, its in genres.items()}
    rated: dict[str, list[tuple[Tensor, float]]] = defaultdict(list)
    with (folder / "ratings.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            rated[row["userId"]].append((features[row["movieId"]], float(row["rating"])))
    found = {}
    for user in sorted(rated, key=lambda user: (-len(rated[user]), int(user)))[:users]:
        films, ratings = torch.stack([film for film, _ in rated[user]]), torch.tensor([one for _, one in rated[user]])
        test = torch.arange(len(ratings)) % 4 == 3
        found[f"user-{user}"] = User(films[~test], ratings[~test], films[test], ratings[test])
    return found


def build(features: int) -> nn.Sequential:
    """From a film's features to its rating."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(features, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 1))


def fit(model: nn.Module, films: Tensor, ratings: Tensor, steps: int, lr: float) -> None:
    """Trains what requires a gradient, by a new optimizer."""
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(films).squeeze(-1), ratings).backward()
        optimizer.step()


def fit_personal(
    adapter: GPartAdapter, users: dict[str, User], folder: Path, steps: int, lr: float
) -> dict[str, Tensor]:
    """Trains and saves an adapter for each user, the loop that this example is about; gives back what each predicts."""
    predicted = {}
    for name, user in users.items():
        with torch.no_grad():
            adapter.theta.zero_()
        fit(adapter.model, user.films, user.ratings, steps, lr)
        adapter.save(folder / name)
        predicted[name] = predictions(adapter.model, user)
    return predicted


@torch.no_grad()
def predictions(model: nn.Module, *users: User) -> Tensor:
    """The ratings of the users' test films."""
    return model(torch.cat([user.test_films for user in users])).squeeze(-1)


def errors(model: nn.Module, users: dict[str, User]) -> Tensor:
    """(users,): the mean squared error on the test ratings of each."""
    its = predictions(model, *users.values()).split([len(user.test_ratings) for user in users.values()])
    pairs = zip(its, users.values(), strict=True)
    return torch.stack([nn.functional.mse_loss(one, user.test_ratings) for one, user in pairs])


def main() -> None:
    """Trains, keeps, combines and serves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="a folder with MovieLens' movies.csv and ratings.csv; default made up"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/personal"), help="where everything is written")
    parser.add_argument("--users", type=int, default=100, help="two or more, those with the most ratings")
    parser.add_argument("--d", type=int, default=32, help="the length of theta")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.1)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.data is None:
        arguments.data = arguments.out
        make_data(arguments.data, arguments.users)
    users = read_data(arguments.data, arguments.users)
    everyone = list(users.values())

    # One base from everybody's ratings.
    model = build(everyone[0].films.shape[1])
    films, ratings = torch.cat([user.films for user in everyone]), torch.cat([user.ratings for user in everyone])
    fit(model, films, ratings, steps=100, lr=0.01)
    model.eval()
    by_base = errors(model, users)

    # An adapter for each.
    folder = arguments.out / "adapters"
    adapter = attach(model, GPartConfig(d=arguments.d, target_modules=["0", "2", "4"]))
    trained = fit_personal(adapter, users, folder, arguments.steps, arguments.lr)
    adapter.detach()
    sizes = [sum(file.stat().st_size for file in (folder / name).iterdir()) for name in users]
    print(
        f"{len(users)} adapters of d = {arguments.d} on D = {adapter.size}: {sum(sizes)} bytes, {max(sizes)} at most each"
    )

    # Two of them added up, for an evening together.
    first, second = list(users)[:2]
    both = combine({read(folder / first): 0.5, read(folder / second): 0.5}, name="together")
    both.save(folder / "together")

    # All served from one base: the store reads the folders, the switch copies theta.
    switch, rows, same = Switch(model, AdapterStore(folder)), [], True
    for name, user in users.items():
        switch.use(name)
        with switch.running():
            rows.append(errors(model, users))
            same = same and torch.equal(predictions(model, user), trained[name])
    table = torch.stack(rows)  # the adapter of each, on the ratings of each
    own, others = table.diagonal(), (table.sum(0) - table.diagonal()) / (len(users) - 1)
    print(f"served as they were trained, to the bit: {same}")
    print(f"mean squared error: base {by_base.mean():.4f}, own {own.mean():.4f}, somebody else's {others.mean():.4f}")
    print(
        f"own adapter better than the base for {(own < by_base).sum()}, than others' on average for {(own < others).sum()}"
    )
    switch.use("together")
    with switch.running():
        shared = errors(model, users)[:2].mean()
    alone = table[:2, :2].mean(1)
    print(f"{first} and {second}: {shared:.4f} by both added up, {alone[0]:.4f} and {alone[1]:.4f} by one of them")
    switch.close()

    # Several users in one batch: a row each.
    names = list(users)[:8]
    films = torch.stack([users[name].test_films[0] for name in names])
    adapters = [load_adapter(model, folder / name, name=name) for name in names]
    with torch.no_grad(), adapters[0].batch(names):
        mixed = model(films).squeeze(-1)
    away = max(abs(mixed[at] - trained[name][0]).item() for at, name in enumerate(names))
    print(f"one batch of {len(names)} users: at most {away:.1e} away from each alone")


if __name__ == "__main__":
    main()
