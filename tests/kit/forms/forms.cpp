// SPDX-License-Identifier: Apache-2.0 OR MIT
// The forms on the twin: one thread a side.
#include <type_traits>

#include "forms/echo.hpp"
#include "forms/forms.hpp"

namespace {

template <class F> void in_order(warpmail::u64 o, F&& run) {
    using warpmail::order;
    if (o == 0)
        run(std::integral_constant<order, order::ordered>{});
    else if (o == 1)
        run(std::integral_constant<order, order::self_contained>{});
    else
        run(std::integral_constant<order, order::fenced>{});
}

} // namespace

extern "C" void forms_produce(const forms::task* t) {
    in_order(t->push.order, [&](auto o) { forms::produce<decltype(o)::value>(*t, forms::one_lane{}); });
}
extern "C" void forms_consume(const forms::task* t) {
    in_order(t->pop.order, [&](auto o) { forms::consume<decltype(o)::value>(*t, forms::one_lane{}); });
}
extern "C" void forms_push_durably(const forms::durable_task* t) {
    forms::push_durably(*t, forms::one_lane{});
}
extern "C" void forms_misuse(const forms::task* t) {
    forms::misuse(*t, forms::one_lane{});
}
extern "C" void forms_clear(const forms::task* t, warpmail::u64 start) {
    warpmail::clear_mailbox(t->mailbox, start);
}
// The outer ends of one relay.
extern "C" void forms_echo(const forms::echo_task* t) {
    forms::echo(*t, forms::one_lane{});
}
