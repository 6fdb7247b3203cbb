/* A policy: rows, the first that matches counts. Pure. */
#include "plane.h"

#include <stdlib.h>

static int within(const uint8_t *net, unsigned bits, const uint8_t *ip)
{
    unsigned bytes = bits / 8, rest = bits % 8;

    if (memcmp(net, ip, bytes) != 0)
        return 0;
    return rest == 0 || ((net[bytes] ^ ip[bytes]) >> (8 - rest)) == 0;
}

static int matches(const struct lc_rule *row, const struct lc_addr *client,
                   const struct lc_addr *original, uint32_t mark)
{
    if (original->port < row->low || original->port > row->high)
        return 0;
    if ((mark & row->mask) != row->mark)
        return 0;
    if (row->family != 0
        && (row->family != original->family || !within(row->ip, row->bits, original->ip)))
        return 0;
    return row->source_family == 0
        || (row->source_family == client->family
            && within(row->source, row->source_bits, client->ip));
}

int lc_judge(const struct lc_rule *rules, int n, const struct lc_addr *client,
             const struct lc_addr *original, uint32_t mark)
{
    int i;

    for (i = 0; i < n; i++)
        if (matches(&rules[i], client, original, mark))
            return rules[i].action;
    return LC_DENY;
}

struct rules *lc_rules_copy(const struct lc_rule *rules, int n)
{
    struct rules *made = malloc(sizeof *made + (size_t)n * sizeof *rules);
    int i;

    if (made == NULL)
        return NULL;
    made->n = n;
    made->marks = 0;
    memcpy(made->row, rules, (size_t)n * sizeof *rules);
    for (i = 0; i < n; i++)
        made->marks |= rules[i].mask != 0;
    return made;
}
