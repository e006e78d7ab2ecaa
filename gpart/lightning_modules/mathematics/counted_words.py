"""Words that are counted in the questions of GSM8K and MATH: a closed list, so that no other word passes for a unit.

``PLURALS``, ``KINDS`` and ``STUFF`` come from the 8,792 questions and worked answers of GSM8K (Cobbe et al., "Training
Verifiers to Solve Math Word Problems", 2021; https://github.com/openai/grade-school-math, under the MIT licence), each
used there at least twice; ``benchmarks/grading/words.py`` collects them and says what was struck out. ``OF_MATH`` is a list
by hand of what MATH's questions ask for. They are single words; no sentence of the data is here.
"""

from __future__ import annotations

import re

PLURALS = """
accessories accidents acorns acres actors addresses administrators ads adults airplanes albums alligators amulets
animals answers antacids antlers ants apartments appetizers apples applications appointments apps aprons aquariums
armchairs arms artichokes articles artifacts artworks asparagus athletes attendees audiobooks aunts avocados awards
babies backpacks badges bagels baggies bags baguettes bales balloons balls bananas bandages bands barrels barrettes
bars baseballs basketballs baskets batches bathrooms baths bats batteries beads beakers beams beans bearings bears
beats beavers bedbugs bedrooms beds bees beetles beignets belts benches berets berries bicycles bids bikes billboards
bills binders bins biographies birches birdhouses birds biscuits bites blackbirds blankets blisters blocks blondies
blouses blueberries boards boas boats bollards bolts bones bonnets bookcases bookmarks books bottlecaps bottles
bouquets bowlfuls bowls boxcars boxes boxwoods boys bracelets braids branches breads breakfasts breaks breaths bricks
bridesmaids brochures broomsticks brothers brownies browns brunettes bubbles buckets bucks bugs builders buildings
bulbs bunches bundles bunnies buns burgers burritos burrs buses bushels bushes businesses butterflies buttons buyers
cabinets cages cakes calls calories camels campers candies candles canes cannolis cans cantaloupes caps capsules
caramels cardinals cards carnations carpenters carpets carriages carrots cars cartons carts cases castles categories
caterpillars cats cavities ceilings cells centers centimeters cents chains chairs champions channels chaperones
chapters characters chargers charges charts checks cheerleaders cheesecakes cheeses cheetahs chefs cherries chests
chickens chicks children chimichangas chipmunks chips chives chocolates choices chores circles cirrus citations cities
citizens claims clamps clarinets classes classmates classrooms claws cleaners clerks clients clippings clips cloaks
clothes clotheslines clouds clovers cloves clowns clusters coaches coals coats cobras cobs coconuts coffees coins
collars collectors colleges collies colors columns comics complaints computers cones consonants contacts containers
contains contestants contracts conversions convertibles cookies coolers copies corns cougars coughs counselors counters
countries counts coupons courses cousins covers cows crabs crackers crafts cranberries cranes craters crates crayons
creams credits crickets croissants crops crosswalks croutons crows cubes cubs cucumbers cupcakes cups curlers curries
customers cuttlebones cycles dahlias daisies dandelions daughters days decks decorations deer deers degrees delegates
deliveries demerits desks desserts devices diapers diaries dice digits dimes dinners discounts dishes dislikes doctors
dogs dollars dolls dolphins dominoes donations donuts doors doses dots doughnuts doughs doves downloads dragons
drawings dreadnoughts dreams dresses drinks driveways dromedaries drops drummers drums dryers ducklings ducks dumplings
dwarves earrings ears eels eggplants eggs elephants elves emails employees emus enclosures enemies engines entrees
envelopes episodes erasers errors espressos essays euros exams exercises expenses eyes fairies families fans farmhands
farms farthings feathers feedings feet females fences ferns fields fights figures figurines files filets fillets
fingers firecrackers firefighters fireflies fires fireworks fish fishes flags flagstones flamingoes flamingos
flashlights flats flavors fleas flies flights flips floats floors flowers flutes flyers folders foldings followers
footballs footprints forks forms fowls foxes frames friends fries frisbees frogs fronds fruits funds galleries gallons
games gas gates geckos geese gels gems gemstones geraniums gerbils gharials gifts gigabytes gigs gingerbreads giraffes
girls glasses globes gnomes goals goats goldfishes graders grades graduates grains grams granddaughters grapes
grasshoppers graves groceries groups guests guides guitars gumballs guns guppies gusts haircuts hairs halls hamburgers
hamsters handfuls hands hangers hares hats hawks heads hearts hectares heels helmets hens hexagons highlighters hikes
hills hits hives holes homes honeydews hoodies hoops hoots hops horses horseshoes hospitals hotdogs households houses
hrs humans hushpuppies huskies iguanas inches increments individuals infections inhabitants inpatients insects
installments instances instructions instructors instruments intersections intervals invitations islands issues items
jackets jacks jaguars jars jays jeans jellybeans jennies jerseys jewels jobs joggers jokes jugs juices jumpers jumps
kangaroos kebabs kernels kettles keyboards keys kgs kids kilobytes kilograms kilometers kilos kilowatts kindergartners
kinds kitchens kits kittens kiwis knives knobs knots koalas ladders ladies ladybugs lambs lamps laps laptops lasagnas
lattes lawnmowers lawns layers layoffs lbs leaves legos legs leis lemons lengths lens leopards lessons letters levels
licks lids lightbulbs lighters lights likes lilacs lilies limbs limes lines links lions liters lives lizards llamas
loads loaves loggers logs lollipops losses lovers lunches lychees macarons macaroons machines magazines maggots magnets
magpies males mambas managers mangoes mangos marbles marigolds marines markers marks marshmallows mascots masks
matchboxes matches matchsticks materials maths mats meals meatballs medals megabits megabytes melons members men meows
messages meters metres mice microphones miles milkshakes milligrams milliliters millimeters millipedes minks minnows
minutes mirrors mistakes mittens models monitors monkeys monsters months motorcycles mountains moves movies muffins
mugs mushrooms musicians nails napkins naps necklaces neighbors nephews nerds newborns newspapers nickels nieces nights
noodles noses notebooks notes nougats novels nuggets numbers nurses nuts oats objects offers offices olives omelets
omelettes onions oranges orchards orchids orcs orders ounces outfits outsiders owners oysters packages packets packs
pages pails paintings pallets pamphlets pancakes pandas panels pans pansies pants papayas paperclips papers paragraphs
parents parks parrots parsecs parsnips participants particles parties parts passengers passes pastries patches patients
patrons pauses paws paychecks payments peaches peanuts pearls pears pebbles pencils penguins pennies pens people
peppers periods permits persons pesetas pesos petals pets petunias pfennigs phones photographs photos phrases pianists
pickles picks pictures pieces pies pigeons piglets pigs piles pillows pills pineapples pinecones pines pins pints
pistachios pitches pits pixels pizzas planks plans planters plants plates players playlists plays plots plugs plums
pockets pods poets pointers points poles polishes pollywogs pomegranates pomelos poodles pools popsicles porcupines
portions portraits postcards posters posts potatoes pots pouches pounds presents pretzels printers prints problems
products professionals programs puffs pulls pumpkins pumps punches pupils puppies pups purses pushups puzzles pythons
quarts questions quiches quilts quizzes rabbits racers races racquets radishes raisins raspberries rats razors reams
recipes records recoveries rectangles redwoods reflections refuels relatives repacks repairs repeats reports represents
reps requests residents restaurants returns rhinestones rhinos ribbons riddles riders rides ridges rings robes robins
robots rocks rodents rods rolls roofs roommates rooms roosters ropes roses rotations rounds rows rubies ruffles rugs
rungs runners runs sacks sacs salads sales salmons salutations samples sandcastles sandwiches saplings sapphires sauces
sausages savings scallops scarves scents schools scientists scissors scoops scouts screens screws seagulls seahorses
seashells seasons seats seconds sections sectors seedlings seeds segments semesters seniors sentences sequences sequins
servings sessions sets settings shares sharks sheep sheets shells shelves shingles ships shirts shoeboxes shoes shorts
shots showers shows shrimp siblings sides sightings signatures signs singers singles sips sisters sites situps skates
skeins skeletons skips skirts skulls slacks slats sleeves slices smoothies smores snacks snails snakes snapdragons
sneakers snowballs snowflakes soaps socks sodas sofas soldiers songs sonnets sons sounds souvenirs spaces sparklers
spears species spiders spiderwebs spokes spools spoonfuls spoons sports spots sprigs squads squares squats squirrels
stables stacks stains stairs stakes stalks stamps stanzas staplers starfishes stars states stations statues steaks
stems steps stickers sticks stimulus stingrays stitches stones stools stoplights stops stores stories strands
strawberries straws streams streetlights streets strings stripes strips strokes students stuffers stuffies subjects
subs subscribers subscriptions subsections substitutions suckers suggestions suitcases suits sundaes sunflowers
supplements supplies surfers surveys swallows swans sweaters sweatshirts sweets systems tables tablespoons tabs tacks
tacos tadpoles tails tangerines tanks taps tarantulas tarts tasks tattoos taxes taxis tbs teachers teacups teams tears
teas teaspoons teddies teenagers tees teeth televisions tennis tents terriers teslas tests tetras textbooks texts
thermoses things thorns throws thumbtacks tickets ticks ties tigers tiles tins tires tissues toads toddlers toenails
toes tokens tomatoes tonnes tons tools toothbrushes toothpicks toppings tops touchdowns tourists towels towers toys
tractors trains trays treasures treats trees triangles tricks tricycles trikes trips trolls trombones trophies trout
trouts truckloads trucks truffles trumpets tubes tubs tulips tumblers turkeys turnips turns turtles twigs types
umbrellas uncles unicorns uniforms units uses utensils utilities vacations vaccines vampires vans vases vegetables
vehicles vents vessels vests vets vibrations videos viewers vines violins visitors visits vlogs volleyballs volunteers
voters votes vowels waiters walls walnuts wands washers washes watches watermelons watts ways weasels websites wedges
weeds weekdays weekends weeks weights werewolves whales wheels whiskers whistlers whiteboards whites widgets wights
wigs windows wings wins wipes wolves wombats women words workdays workers works worksheets worms yards yarns years
yields yogurts yolks zebras zits zombies zones
"""
"""What follows a number or "how many"."""
KINDS = """
action actual adult aluminum amber animal apartment apple art baby backup bacon ball banana baseball basil basketball
bath beaded beanie bell berry beta betta bicycle big bike birthday black blue blueberry board boat bobby book
bookmarked border bottle bouncy breeding broken bronze brown building burger butter butterscotch cabinet cake can
candied candy car carnival carrot cat ceiling cell cement cheese cheesecake cherry chicken chihuahua child chocolate
cinnamon clay coal coconut coffee college collie colored comic commencement complete cookie copper corn correct cotton
crab crayon creeping crew cubic cucumber cup custard daffodil dance dandelion data decorative defective different
dinner dinosaur disco dog dollar drawer dress drip dryer dust easter egg eggplant employee empty equal evening exercise
eyeshadow face family fantasy female fence fencing field filled final floral flower flowering fluid foot football
foreign free french fried friendship fruit fruiting full furniture gift giraffe glass glue goal gold golden golf good
graham granola grape green grey guest guinea guitar gummy ham hanging hard hash helium herb hermit hockey home hoot
horizontal hot hour human hybrid ice iced identical inch incorrect index individual indoor infected investment iron
jalapeno jello jelly job juice jumbo jumping kabob key koi lab land large layer leather leftover lego lemon lettuce
life light lily lion loose lottery male mango maple math matinee measuring meat med medium metal mild mini minute model
monthly mosaic mosquito mowing multicolored mushroom mystery nail nautical new normal oatmeal open orange origami
original ounce outdoor pajama palm papaya paper parked parking parsley peach peanut perfect person pet petal phone
pickle pillow pine pineapple pink pit pizza place plant plastic plumeria pokemon police polo pool pop popsicle potato
potential potted pound pregnant private pumpkin purple raffle rainbow rectangular red regular rehabilitation remaining
ring ripe road roller roof rose round rubber sausage school science sea seed senior separate shaken shark shirt
shooting shower silver single small smaller snow snowflake soccer soda soft solar sourball space special speeding
spelling spicy spiral square steak sticky stocking stone stop strawberry street string striped student stuffed
substitute sugar sun sweet swimming team teddy telephone test text theme tiger tomato topaz tortilla tough toy tractor
trading trash truck tulip unique unoccupied unread unripe unshaken unsold untorn unused used useful vacation vampire
vanilla video wall war washing water watermelon website wedding weekend weight wet white window wood wooden yellow
zebra
"""
"""What stands between a number and such a word: red marbles, duck eggs."""
STUFF = """
air apricots aquafaba asphalt baking bamboo basswood bathing beef beeswax birdseed bleach blood bologna bond bottled
broccoli bullying buttered butternut cabbage cable caffeine calculators caramel carbon catfish cereals chalk champagne
chewing chickpeas chili chlorine cider cleaner clothing cloths code cognac cola construction coral couscous crawfish
cream cutlery cuttlebone diesel dip domestic dough drum dry eggnog electric electricity equipment experience fabric
farmland feed fertiliser fertilizer firewood floss flour fluffy food formula fresh frosting frozen fudge fuel garbage
garlic gasoline gingerbread gluten grain grassland gravel ground guacamole hair hairspray hamburger hammers hay heavy
honey imported ivy jade jam jerky jewelry jogging junk ketchup kibble kombucha koolaid laces lasagna laundries laundry
lawn lemonade letter lime line lip liquid litter lobster lotion luggage lumber mail maize mashed masking material milk
mint moods mozzarella music mustard notebook oil ore packing paint parmesan passion pasta peas pepperoni perfume pesto
pickled pig piping plum popcorn protein pudding punch rain rainwater resistance ribbon rice rock rope salmon salt sand
sandwich shampoo silk silly silverware sliced soap sod soil soup sourdough soy sparkling sprinkles stationery stocks
straw stuff stuffing sunscreen swords tape tea thread toast trail type velvet vinegar vodka wax wheat whipped wind wine
winter wire wool wrap wrapping yarn yogurt zucchini
"""
"""What there are cups or bags of."""
OF_MATH = """
angles arrangements bits bounces cars choices circles coefficients colorings combinations committees constants degrees
diagonals digits distributions divisors edges elements equations factors faces factorizations fractions functions guests
handshakes heads inhabitants integers intersections intervals licks lines matrices multiples multisets orderings outcomes
palindromes paths pentagons permutations planes points polygons polynomials primes progressions quadrilaterals
rectangles regions remainders residues rhombuses routes segments sequences solutions spectators strips subsets
tails teams terms triangles triples tuples unit units values variables vertices voters ways zeros
"""
NO_SINGULAR = """
change cube discount equal expense fold fraction incorrect like log loss mean multiple point saving score short square tie time
triple
"""
"""Singulars that have another meaning behind a number: 4 square, 20 short, 3 log."""


def _singulars(plural: str) -> set[str]:
    """Returns what the singular may be. Forms that are no words do no harm."""
    if not plural.endswith("s"):
        return {"person", "man", "woman", "child", "goose", "tooth"} if plural == "people" else set()
    found = {plural[:-1]}
    if plural.endswith("ies"):
        found.add(plural[:-3] + "y")
    if re.search("(?:[sxzo]|[cs]h)es$", plural):
        found.add(plural[:-2])
    if plural.endswith("ves"):
        found |= {plural[:-3] + "f", plural[:-3] + "fe"}
    return found


def _all() -> frozenset[str]:
    plurals = [*PLURALS.split(), *OF_MATH.split()]
    singulars = {word for plural in plurals for word in _singulars(plural) if len(word) > 2}
    return frozenset({*plurals, *(singulars - set(NO_SINGULAR.split()))})


COUNTED = _all()
"""Nouns, in the plural and in the singular."""
BESIDE = frozenset({*KINDS.split(), *STUFF.split()})
"""What may stand beside such a noun."""
