"""The stale-entry oracle: every answer that an IOMMU with caches may give, and no other.

The rule: with everything invalidated, a unit answers as the reference walk of the tables does.
Otherwise each level of the answer (context, each paging structure, leaf) may be any value that
the entry held since the last invalidation that covers that level's cache, and the answer is one
of the combinations along the path.

The oracle plays a unit whose caches never evict and remember every value they could have been
filled with. Each request is walked from every starting point that a cache could offer as well as
from the top, reading memory as it is now; whatever the walks meet, the caches may hold from then
on. An invalidation takes away exactly what it covers. A unit that evicts, or that has smaller
caches, gives answers from within the same set. Entries are filled by requests alone: the oracle
is for units that do not prefetch, and is stricter than the rule by that much.

A device-TLB is one more cache: it holds what translation requests were granted, and answers in
place of the unit until an invalidation of its own covers it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Generic

from iommu_emu.core import Access, AddressType, Outcome, Request
from iommu_emu.reference import Answer, ContextT, Failure, Leaf, Node, Walker, nothing

__all__ = ["Oracle"]

PAGE_SHIFT = 12
LEVEL_BITS = 9


@dataclass(frozen=True)
class _Translation(Generic[ContextT]):
    """What an IOTLB may hold for one page: the end of a walk, and the context it began with."""

    context: ContextT
    first: int
    shift: int
    end: Leaf | Failure | Answer

    def overlaps(self, first: int, last: int) -> bool:
        return self.first <= last and first < self.first + (1 << self.shift)


@dataclass(frozen=True)
class _Table:
    """What a paging-structure cache may hold for one region of a domain's input addresses."""

    first: int
    shift: int
    node: Node | Failure


@dataclass(frozen=True)
class _Granted:
    """What a device-TLB may hold for one page."""

    first: int
    shift: int
    address: int
    permissions: Access
    untranslated: bool

    def overlaps(self, first: int, last: int) -> bool:
        return self.first <= last and first < self.first + (1 << self.shift)


class Oracle(Generic[ContextT]):
    """Tracks what the caches of one unit may hold.

    Tell it every request before the unit sees it, and every invalidation that has completed.

    Args:
        walker: walks the tables as the registers stand; assign a new one when they change.
        by_domain: the IOTLB is looked up by domain, through the context cache; else by
            requester ID (VT-d 9.2).
        negative: faulting entries are cached too (VT-d CAP.CM, AMD-Vi NpCache).
    """

    def __init__(
        self, walker: Walker[ContextT], *, by_domain: bool = False, negative: bool = False
    ) -> None:
        self.walker = walker
        self.by_domain = by_domain
        self.negative = negative
        self._contexts: dict[int, set[ContextT | Failure]] = defaultdict(set)
        self._tables: dict[int, set[_Table]] = defaultdict(set)
        self._translations: dict[int, set[_Translation[ContextT]]] = defaultdict(set)
        self._device_tlbs: dict[int, set[_Granted]] = defaultdict(set)

    # ---- requests ----------------------------------------------------------------------------

    def allowed(self, request: Request) -> set[Answer]:
        """Return every right answer to a request that arrives now, and remember its traces."""
        early = self.walker.admit(request)
        if early is not None:
            return {early}
        hits = [] if self.by_domain else list(self._hits(request))
        plain = request.at is AddressType.UNTRANSLATED
        answers = {self._answer(entry.context, entry.end, request) for entry in hits if plain}
        fresh = self.walker.context(request.requester)
        known = self._contexts[request.requester]
        for context in known | {fresh}:
            if isinstance(context, Failure):
                answers.add(self.walker.fail(request, None, context))
                continue
            if request.at is AddressType.TRANSLATION_REQUEST and isinstance(
                self.walker.enter(context, request), Node | Leaf
            ):
                # Whether the device may ask is its context's matter, before any other cache.
                answers |= {self._answer(entry.context, entry.end, request) for entry in hits}
            answers |= self._walks(context, request)
        if self.negative or not isinstance(fresh, Failure):
            known.add(fresh)
        return answers

    def allowed_through_device_tlb(self, request: Request) -> set[Answer]:
        """Return every right answer to a request of a device that uses its device-TLB.

        Args:
            request: as it would be without ATS; it does not cross a 4 KiB page.

        Returns:
            Of the request that it sends, or of the translation request that it sent in vain: one
            that grants nothing means that it sends nothing.
        """
        page = request.address & ~((1 << PAGE_SHIFT) - 1)
        at = AddressType.TRANSLATION_REQUEST
        asked = replace(request, address=page, length=8, access=Access.READ, at=at)
        granted = self._device_tlbs[request.requester]
        answers = set()
        for answer in self.allowed(asked):
            if answer.failure is not None:
                answers.add(answer)
                continue
            if answer.permissions:
                granted.add(_grant(answer, asked.address))
            if request.access & ~answer.permissions:
                answers.add(nothing(answer.domain))
        for entry in list(granted):
            if entry.overlaps(request.address, request.address):
                if request.access & ~entry.permissions:
                    continue
                answers |= self.allowed(_translated(entry, request))
        return answers

    def _hits(
        self, request: Request, domain: int | None = None
    ) -> Iterator[_Translation[ContextT]]:
        key = request.requester if domain is None else domain
        if request.at is AddressType.TRANSLATED:
            return  # the context alone decides (VT-d 6.3, AMD-Vi 8)
        for entry in self._translations[key]:
            if entry.overlaps(request.address, request.address):
                yield entry

    def _walks(self, context: ContextT, request: Request) -> set[Answer]:
        """Return the answers with one context, and fill the caches with what they met."""
        answers = set()
        if self.by_domain:
            for entry in list(self._hits(request, context.domain)):
                answers.add(self._answer(context, entry.end, request))
        start = self.walker.enter(context, request)
        ends: set[Leaf | Failure | Answer] = set()
        if isinstance(start, Node):
            for node in self._starts(context.domain, start, request.address):
                ends.add(self._descend(context.domain, node, request.address))
        else:
            ends.add(start)
        for end in ends:
            answers.add(self._answer(context, end, request))
            if self._cached(context, end, request):
                self._remember(context, end, request)
        return answers

    def _starts(self, domain: int, top: Node, address: int) -> set[Node | Failure]:
        cached = {
            table.node
            for table in self._tables[domain]
            if table.first <= address < table.first + (1 << table.shift)
        }
        return {top} | cached

    def _descend(self, domain: int, node: Node | Failure, address: int) -> Leaf | Failure:
        while isinstance(node, Node):
            below = self.walker.step(node, address)
            if isinstance(below, Leaf):
                return below
            if isinstance(below, Node) or self.negative:
                # A table covers what one entry above it does; so does an entry that faults.
                level = below.level if isinstance(below, Node) else node.level - 1
                shift = PAGE_SHIFT + LEVEL_BITS * level
                self._tables[domain].add(_Table(address >> shift << shift, shift, below))
            node = below
        return node

    def _answer(self, context: ContextT, end: Leaf | Failure | Answer, request: Request) -> Answer:
        if not isinstance(end, Answer):
            return self.walker.finish(context, end, request)
        return replace(end, address=request.address) if end.outcome is Outcome.MEMORY else end

    def _cached(self, context: ContextT, end: Leaf | Failure | Answer, request: Request) -> bool:
        if request.at is AddressType.TRANSLATED:
            return False
        if isinstance(end, Leaf):
            return self.negative or bool(end.permissions)
        if isinstance(end, Failure):
            return self.negative
        return end.outcome is Outcome.MEMORY

    def _remember(self, context: ContextT, end: Leaf | Failure | Answer, request: Request) -> None:
        shift = end.shift if isinstance(end, Leaf) else PAGE_SHIFT
        key = context.domain if self.by_domain else request.requester
        first = request.address >> shift << shift
        self._translations[key].add(_Translation(context, first, shift, end))

    # ---- invalidations -----------------------------------------------------------------------

    def invalidate_context(
        self,
        *,
        domain: int | None = None,
        requester: int | None = None,
        function_mask: int = 0,
    ) -> None:
        """Forget contexts (VT-d 7.4 cc, AMD-Vi 9.2 INVALIDATE_DEVTAB_ENTRY).

        Args:
            domain: only those with this domain ID; None: any.
            requester: only this function's; None: any.
            function_mask: bits of the requester ID that do not matter.
        """
        for owner, contexts in self._contexts.items():
            if requester is not None and (owner ^ requester) & ~function_mask:
                continue
            contexts -= {c for c in contexts if domain is None or _tag(c) == domain}

    def invalidate_iotlb(
        self,
        *,
        domain: int | None = None,
        first: int = 0,
        last: int = (1 << 64) - 1,
        keep_tables: bool = False,
    ) -> None:
        """Forget translations, and paging structures unless told to keep them.

        Args:
            domain: only those with this domain ID; None: any.
            first: first input address.
            last: last input address.
            keep_tables: VT-d IH=1, AMD-Vi PDE=0.
        """
        for translations in self._translations.values():
            translations -= {
                entry
                for entry in translations
                if domain in (None, entry.context.domain) and entry.overlaps(first, last)
            }
        if keep_tables:
            return
        for owner, tables in self._tables.items():
            if domain in (None, owner):
                tables -= {
                    t for t in tables if t.first <= last and first < t.first + (1 << t.shift)
                }

    def invalidate_device_tlb(
        self, requester: int, first: int = 0, last: int = (1 << 64) - 1
    ) -> None:
        """Forget what a device may hold, once it has answered (VT-d 7.2, AMD-Vi 9.2).

        Args:
            requester: of the device.
            first: first input address.
            last: last input address.
        """
        granted = self._device_tlbs[requester]
        granted -= {entry for entry in granted if entry.overlaps(first, last)}

    def invalidate_all(self) -> None:
        """Forget everything but device-TLBs, as a reset of the unit does."""
        self._contexts.clear()
        self._tables.clear()
        self._translations.clear()


def _grant(answer: Answer, address: int) -> _Granted:
    """Return what a device keeps of the answer to a translation request."""
    offset = address & ((1 << answer.page_shift) - 1)
    return _Granted(
        address - offset,
        answer.page_shift,
        answer.address - offset,
        answer.permissions,
        answer.untranslated,
    )


def _translated(entry: _Granted, request: Request) -> Request:
    """Return the request that goes out once a device-TLB has answered."""
    if entry.untranslated:
        return request
    address = entry.address + request.address - entry.first
    return replace(request, address=address, at=AddressType.TRANSLATED)


def _tag(context: object) -> int:
    """Domain ID that a context is invalidated by; one that is not present has 0 (VT-d 9.5)."""
    domain: int = getattr(context, "domain", 0)
    return domain
